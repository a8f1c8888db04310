"""Mixture of flows on a sphere that starts where data are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows.manifolds.sphere import NormalizedLinear, Rotation, VonMisesFisher
from pyro_flows.manifolds.sphere.geometry import any_frame, check_on_sphere
from pyro_flows.transforms.compose import Compose
from pyro_flows.transforms.core import FlowTransform

from .flow_distribution import FlowDistribution
from .flow_mixture import FlowMixture

#: Concentration of the distribution that a component starts from.
_CONCENTRATION = 10.0


def sphere_mixture(
    data: Tensor,
    num_components: int,
    *,
    inner: Callable[[int], FlowTransform] | None = None,
    seed: int = 0,
) -> FlowMixture:
    r"""A mixture of flows on :math:`S^{n-1}`, one at each of the groups that k-means finds in data, for ``fit_density``.

    A component is a von Mises-Fisher distribution of concentration 10 about the last axis, mapped by ``inner``, then by a
    :class:`~pyro_flows.manifolds.NormalizedLinear` map that gives it its width and shape, of any ellipse and skewed by what of it
    is far, and a fixed rotation to its place, from which the linear map moves it.

    References:
        Pires, Figueiredo (2023), *Spherical mixtures of normalizing flows*, https://arxiv.org/abs/2301.06404

    Args:
        data: Unit vectors ``(N, n)``.
        num_components: Number of components, at most N.
        inner: Makes a transform of directions for the number n, applied first; none if None.
        seed: Of the start of k-means.

    Returns:
        The mixture, with weights that are learned.

    Raises:
        ValueError: If data are no unit vectors, or fewer than components.

    Example:
        >>> from pyro_flows.manifolds import project_to_sphere
        >>> mixture = sphere_mixture(project_to_sphere(torch.randn(50, 3)), 2)
        >>> mixture.weights.shape
        torch.Size([2])
    """
    if data.dim() != 2:
        raise ValueError(f"data must have shape (N, n), got {tuple(data.shape)}")
    check_on_sphere(data, "data")
    if not isinstance(num_components, int) or not 1 <= num_components <= len(data):
        raise ValueError(f"num_components must be an integer from 1 to {len(data)}, the number of rows, got {num_components!r}")
    n = data.shape[-1]
    centres, nearest = spherical_k_means(data, num_components, seed)
    base = VonMisesFisher(torch.eye(n, dtype=data.dtype, device=data.device)[-1], _CONCENTRATION)
    members, weights = [], []
    for k in range(num_components):
        rows = data[nearest == k]
        length = rows.mean(0).norm().clamp(0.1, 1 - 1e-7) if len(rows) > 1 else data.new_tensor(0.999)
        linear = NormalizedLinear(n).to(data)
        with torch.no_grad():
            # 1 - R is about (n - 1) / (2 kappa); tangent vectors are scaled by the root of the ratio of concentrations.
            kappa = (n - 1) / (2 * (1 - length))
            linear.params.get_parameter("log_diagonal")[:-1] = 0.5 * (_CONCENTRATION / kappa).log()
        parts: list[FlowTransform] = [linear, Rotation(any_frame(centres[k]))]
        if inner is not None:
            parts.insert(0, inner(n).to(data))
        members.append(FlowDistribution(Compose(parts), base))
        weights.append((len(rows) + 1) / (len(data) + num_components))
    mixture = FlowMixture(members)
    with torch.no_grad():
        mixture.logits.copy_(torch.tensor(weights).log())
    return mixture


@torch.no_grad()
def spherical_k_means(data: Tensor, num_components: int, seed: int, num_iterations: int = 50) -> tuple[Tensor, Tensor]:
    """Directions of the groups ``(K, n)``, and the group of each row ``(N,)``; the start is that of k-means++.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])
        >>> spherical_k_means(data, 2, 0)[1].unique().tolist()
        [0, 1]
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    chosen = [int(torch.randint(len(data), (), generator=generator, device="cpu"))]
    nearest = 1 - data @ data[chosen[0]]
    for _ in range(num_components - 1):
        chances = nearest.double().clamp(min=1e-12).cpu()
        chosen.append(int(torch.multinomial(chances, 1, generator=generator)))
        nearest = torch.minimum(nearest, 1 - data @ data[chosen[-1]])
    centres = data[chosen].clone()
    group = (data @ centres.mT).argmax(-1)
    for _ in range(num_iterations):
        for k in range(num_components):
            if bool((group == k).any()):
                total = data[group == k].sum(0)
                centres[k] = total / total.norm().clamp(min=1e-12)
        new = (data @ centres.mT).argmax(-1)
        if torch.equal(new, group):
            break
        group = new
    return centres, group
