"""Flows of vectors and images, made into flows of whole numbers, exchangeable and symmetric data."""

from __future__ import annotations

from pyro.distributions import constraints
from torch.distributions import SoftplusTransform

from ..transforms.actnorm import ActNorm
from ..transforms.compose import Compose
from ..transforms.core import FlowTransform
from ..transforms.logit_preprocessing import LogitPreprocessing
from ..transforms.surjections import Abs, Dequantization, Sort
from ..transforms.torch_transform import TorchTransform


def _check(flow: FlowTransform, vectors: bool = True) -> FlowTransform:
    if not isinstance(flow, FlowTransform):
        raise ValueError(f"flow must be a FlowTransform, such as flows.nsf_autoregressive(2), got {flow!r}")
    if vectors and len(flow.output_shape) != 1:
        raise ValueError(f"flow must be one of vectors, got events of shape {tuple(flow.output_shape)}")
    return flow


def of_pixels(flow: FlowTransform, num_bins: int = 256, *, alpha: float = 0.05) -> FlowTransform:
    """A flow of images, or vectors, of values from 0 to ``num_bins - 1``: a logit behind it, and uniform dequantisation.

    Args:
        flow: The flow, from noise to images ``(C, H, W)`` on the line.
        num_bins: Number of values of a pixel.
        alpha: See :class:`~pyro_flows.transforms.LogitPreprocessing`.

    Returns:
        A flow whose likelihoods are one draw of a lower bound of the log-probability of such images.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> from pyro_flows import FlowDistribution, flows
        >>> pixels = FlowDistribution(of_pixels(flows.glow((1, 4, 4), num_steps=1), 16)).sample((3,))
        >>> bool(((pixels >= 0) & (pixels <= 15) & (pixels == pixels.round())).all())
        True
    """
    shape = tuple(_check(flow, vectors=False).output_shape)
    return Compose([flow, LogitPreprocessing(shape, alpha), Dequantization(shape, num_bins, flow.context_dim)])


def of_counts(flow: FlowTransform) -> FlowTransform:
    """A flow of whole numbers: an ActNorm behind it, which ``fit_density`` starts from data, and uniform dequantisation.

    Args:
        flow: The flow, from noise to vectors.

    Returns:
        A flow whose likelihoods are one draw of a lower bound of the log-probability of whole numbers.

    Raises:
        ValueError: If ``flow`` is no flow of vectors.

    Example:
        >>> import torch
        >>> from pyro_flows import FlowDistribution, flows
        >>> counts = FlowDistribution(of_counts(flows.affine(2))).sample((3,))
        >>> torch.equal(counts, counts.round())
        True
    """
    dim = _check(flow).output_shape[0]
    return Compose([flow, ActNorm(dim), Dequantization((dim,), None, flow.context_dim)])


def of_exchangeable(flow: FlowTransform) -> FlowTransform:
    """A flow of vectors whose density does not change when variables are permuted: an ActNorm, increasing vectors, a random order.

    Args:
        flow: The flow, from noise to vectors.

    Returns:
        A flow with exact likelihoods.

    Raises:
        ValueError: If ``flow`` is no flow of vectors.

    Example:
        >>> import torch
        >>> from pyro_flows import FlowDistribution, flows
        >>> q, y = FlowDistribution(of_exchangeable(flows.affine(3))), torch.randn(3)
        >>> torch.allclose(q.log_prob(y), q.log_prob(y.flip(0)))
        True
    """
    dim = _check(flow).output_shape[0]
    return Compose([flow, ActNorm(dim), TorchTransform(constraints.ordered_vector, (dim,)), Sort(dim)])


def of_symmetric(flow: FlowTransform) -> FlowTransform:
    """A flow of vectors whose density does not change with signs: an ActNorm, positive values, random signs.

    Args:
        flow: The flow, from noise to vectors.

    Returns:
        A flow with exact likelihoods.

    Raises:
        ValueError: If ``flow`` is no flow of vectors.

    Example:
        >>> import torch
        >>> from pyro_flows import FlowDistribution, flows
        >>> q, y = FlowDistribution(of_symmetric(flows.affine(3))), torch.randn(3)
        >>> torch.allclose(q.log_prob(y), q.log_prob(-y))
        True
    """
    dim = _check(flow).output_shape[0]
    return Compose([flow, ActNorm(dim), TorchTransform(SoftplusTransform(), (dim,)), Abs(dim, flow.context_dim)])
