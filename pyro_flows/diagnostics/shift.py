"""How far means and spreads of raw draws are from reweighted ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shift:
    """Largest differences between raw and reweighted draws over their coordinates.

    Args:
        mean: Raw less reweighted mean in reweighted sd, where its absolute value is largest.
        sd_ratio: Raw over reweighted sd, where its logarithm is farthest from 0.
        mean_limit: Largest absolute shift of a mean with two standard errors added, in reweighted sd.
        log_sd_limit: Largest absolute logarithm of a ratio of sds with two standard errors added.

    Example:
        >>> Shift(0.02, 0.98, 0.04, 0.05).within(0.1)
        True
    """

    mean: float
    sd_ratio: float
    mean_limit: float
    log_sd_limit: float

    def within(self, tolerance: float) -> bool:
        """Whether means and sds differ by no more than the tolerance, standard errors included.

        Example:
            >>> Shift(0.02, 0.8, 0.04, 0.24).within(0.1)
            False
        """
        return self.mean_limit <= tolerance and self.log_sd_limit <= tolerance


def worst_shift(draws: Tensor, log_weights: Tensor) -> Shift:
    r"""Compare raw with reweighted means and sds, coordinate by coordinate.

    Both come from the same draws, so their errors largely cancel. The standard errors are those of means of influence
    functions. With :math:`\lambda_p = \frac w2 ((x - m_p)^2 / s_p^2 - 1)` for :math:`\log s_p`, and :math:`\lambda_q` the
    same without weights, they are :math:`((x - m_q) - w (x - m_p)) / s_p - \Delta \lambda_p` for the shift
    :math:`\Delta = (m_q - m_p) / s_p` and :math:`\lambda_q - \lambda_p` for the log of the ratio of sds.

    Args:
        draws: Draws ``(S, D)``; those of weight zero may be infinite or NaN and are then left out.
        log_weights: Their log-weights ``(S,)``, normalised or not.

    Example:
        >>> worst_shift(torch.tensor([[0.0], [2.0]]), torch.tensor([0.0, 0.0])).mean
        0.0
    """
    x = draws.detach().to(device="cpu", dtype=torch.float64)
    usable = torch.isfinite(x).all(-1)
    x = x[usable]
    w = log_weights.detach().to(device="cpu", dtype=torch.float64)[usable].softmax(0)[:, None] * len(x)
    raw_mean, mean = x.mean(0), (w * x).mean(0)
    raw, centred = x - raw_mean, x - mean
    raw_var, var = raw.square().mean(0), (w * centred.square()).mean(0)
    moves = raw_var > (1e-12 * (raw_mean.abs() + 1)).square()
    if not bool(moves.any()):
        return Shift(0.0, 1.0, 0.0, 0.0)
    raw, centred, raw_var = raw[:, moves], centred[:, moves], raw_var[moves]
    var = var[moves].clamp_min(torch.finfo(torch.float64).tiny)
    shift = (raw_mean - mean)[moves] / var.sqrt()
    log_ratio = 0.5 * (raw_var.log() - var.log())
    root = math.sqrt(len(x))
    log_sd = 0.5 * w * (centred.square() / var - 1)
    mean_se = ((raw - w * centred) / var.sqrt() - shift * log_sd).std(0) / root
    log_sd_se = (0.5 * (raw.square() / raw_var - 1) - log_sd).std(0) / root
    return Shift(
        mean=float(shift[shift.abs().argmax()]),
        sd_ratio=math.exp(float(log_ratio[log_ratio.abs().argmax()])),
        mean_limit=float((shift.abs() + 2 * mean_se).max()),
        log_sd_limit=float((log_ratio.abs() + 2 * log_sd_se).max()),
    )
