"""Mixture of flows on a sphere that starts where data are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows.manifolds.sphere import NormalizedAffine, NormalizedLinear, Rotation, VonMisesFisher
from pyro_flows.manifolds.sphere.geometry import any_frame, check_on_sphere, project_to_sphere
from pyro_flows.transforms.compose import Compose
from pyro_flows.transforms.core import FlowTransform

from .flow_distribution import FlowDistribution
from .flow_mixture import FlowMixture
from .k_means import k_means

#: Concentration of the distribution that a component starts from.
_CONCENTRATION = 10.0


def sphere_mixture(
    data: Tensor,
    num_components: int,
    *,
    inner: Callable[[int], FlowTransform] | None = None,
    background: float = 0.0,
    seed: int = 0,
) -> FlowMixture:
    r"""A mixture of flows on :math:`S^{n-1}`, one at each of the groups that k-means finds in data, for ``fit_density``.

    A component is a von Mises-Fisher distribution of concentration 10 about the last axis, mapped by ``inner``, then by a
    :class:`~pyro_flows.manifolds.NormalizedLinear` map that gives it its width and shape, of any ellipse and skewed by what of it
    is far, and a fixed rotation to its place, from which the linear map moves it.

    References:
        Ng, Zammit-Mangion (2023), *Mixture modeling with normalizing flows for spherical density estimation*,
        https://arxiv.org/abs/2301.06404

    Args:
        data: Unit vectors ``(N, n)``.
        num_components: Number of components, at most N.
        inner: Makes a transform of directions for the number n, applied first; none if None.
        background: Weight, at the start, of one more component for what lies far from all groups: a uniform distribution, mapped by
            a :class:`~pyro_flows.manifolds.NormalizedAffine`. None if 0.
        seed: Of the start of k-means.

    Returns:
        The mixture, with weights that are learned.

    Raises:
        ValueError: If data are no unit vectors, or fewer than components, or ``background`` is no share below 1.

    Example:
        >>> from pyro_flows.manifolds import project_to_sphere
        >>> mixture = sphere_mixture(project_to_sphere(torch.randn(50, 3)), 2)
        >>> mixture.weights.shape
        torch.Size([2])
    """
    if not isinstance(data, Tensor) or data.dim() != 2:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be a tensor of shape (N, n), got {got}")
    check_on_sphere(data, "data")
    if not isinstance(num_components, int) or not 1 <= num_components <= len(data):
        raise ValueError(f"num_components must be an integer from 1 to {len(data)}, the number of rows, got {num_components!r}")
    if not isinstance(background, (int, float)) or not 0 <= background < 1:
        raise ValueError(f"background must be a share from 0 to below 1, got {background!r}")
    n = data.shape[-1]
    group = k_means(data, num_components, seed)  # for unit vectors the nearest mean is that of the largest cosine, nearly
    base = VonMisesFisher(torch.eye(n, dtype=data.dtype, device=data.device)[-1], _CONCENTRATION)
    members, weights = [], []
    for k in range(num_components):
        rows = data[group == k]
        mean = rows.mean(0) if len(rows) else data[k]
        length = mean.norm().clamp(0.1, 1 - 1e-7) if len(rows) > 1 else data.new_tensor(0.999)
        linear = NormalizedLinear(n).to(data)
        with torch.no_grad():
            # 1 - R is about (n - 1) / (2 kappa); tangent vectors are scaled by the root of the ratio of concentrations.
            kappa = (n - 1) / (2 * (1 - length))
            linear.params.get_parameter("log_diagonal")[:-1] = 0.5 * (_CONCENTRATION / kappa).log()
        parts: list[FlowTransform] = [linear, Rotation(any_frame(project_to_sphere(mean)))]
        if inner is not None:
            parts.insert(0, inner(n).to(data))
        members.append(FlowDistribution(Compose(parts), base))
        weights.append((len(rows) + 1) / (len(data) + num_components))
    if background:
        members.append(FlowDistribution(NormalizedAffine(n).to(data)))
        weights = [*(weight * (1 - background) / sum(weights) for weight in weights), background]
    mixture = FlowMixture(members)
    with torch.no_grad():
        mixture.logits.copy_(data.new_tensor(weights).log())
    return mixture
