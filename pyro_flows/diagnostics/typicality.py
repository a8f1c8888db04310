"""Whether new points are such as a density was trained on: a test of batches, and scores of single points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows.distributions.module_distribution import ModuleDistribution

from .printed import Printed
from .uniformity import LEVEL

LogProb = Callable[[Tensor], Tensor]
#: Points whose gradients are taken at once, and fewest reference points that a claim can rest on.
_PART, _LEAST = 512, 40
#: Reference points that are compared, at most.
_MOST = 4000


@dataclass(frozen=True)
class BatchTypicality(Printed):
    """A test of whether a batch comes from where reference points do.

    Args:
        p_value: Probability of so extreme a batch among batches of the same size from there; the chance of a false alarm of
            ``p_value < 0.05`` is 5 % at most, whatever the density.
        shift: By how many standard errors the batch's mean of each score differs from that of the reference points.
        p_values: Those of its parts, ``"scores"`` and ``"points"``. ``p_value`` is the smaller of them, put right for their number.
        num_points: Size of the batch.
        num_reference: Number of reference points that it was compared with.

    Example:
        See :func:`typicality_test`.
    """

    p_value: float
    shift: dict[str, float]
    p_values: dict[str, float]
    num_points: int
    num_reference: int

    @property
    def typical(self) -> bool:
        """Whether nothing speaks against it at a level of 5 %."""
        return self.p_value > LEVEL

    def __str__(self) -> str:
        words = ", ".join(f"{name} {value:+.1f} standard errors" for name, value in self.shift.items())
        said = "are such as" if self.typical else "are not such as"
        words += f", points themselves p = {self.p_values['points']:.3g}"
        return f"The {self.num_points} points {said} the {self.num_reference} reference points (p = {self.p_value:.3g}; {words})."


def typicality_test(
    density: LogProb | ModuleDistribution, batch: Tensor, reference: Tensor, *, num_permutations: int = 999, seed: int = 0
) -> BatchTypicality:
    r"""Whether a batch of points is typical of a density, with a known rate of false alarms.

    Likelihood alone is no guide: points of another kind may have a higher one than those a density was trained on, and what counts
    is whether theirs is *as it should be*, neither too low nor too high. Two scores of each point are looked at, the log-density
    :math:`\log p(x)` and the log of the norm of its gradient, which tells apart points of the same density that lie at a mode from
    those on a slope. But points of another kind can have the right ones of both, such as digits that lie on their side, of which
    there is no end where there are many variables. So points themselves are compared too, by the maximum mean discrepancy, with a
    Gaussian kernel as wide as the median distance; vectors in units of the standard deviations of the reference points, images as
    they are. A permutation test asks whether batch and reference points could have changed places: it is exact for every density,
    trained well or badly, if reference points are new to it.

    References:
        Nalisnick, Matsukawa, Teh, Lakshminarayanan (2019), *Detecting out-of-distribution inputs to deep generative models using
        typicality*, https://arxiv.org/abs/1906.02994;
        Grathwohl et al. (2020), https://arxiv.org/abs/1912.03263, for the gradient;
        Gretton, Borgwardt, Rasch, Schölkopf, Smola (2012), *A kernel two-sample test*,
        https://jmlr.org/papers/v13/gretton12a.html

    Args:
        density: Log-density of points ``(N, *event)``, ``(N,)``: a function, a distribution or a density fit.
        batch: The points in question, ``(M, *event)``.
        reference: Points of the right kind, **held out** of training, ``(N, *event)``, 40 at least; of more than 4,000, so many
            are drawn.
        num_permutations: Number of permutations; the smallest p-value is one over their number plus one.
        seed: Of the permutations.

    Raises:
        ValueError: If shapes do not fit, there are fewer than 40 reference points, or densities of these are not finite.

    Example:
        >>> normal = dist.Normal(torch.zeros(20), 1.0).to_event(1)
        >>> reference = normal.sample((400,))
        >>> typicality_test(normal.log_prob, normal.sample((10,)), reference).typical
        True
        >>> typicality_test(normal.log_prob, torch.zeros(10, 20), reference).typical  # denser than any draw
        False
    """
    _check(batch, reference)
    scores = [typicality_scores(density, points) for points in (batch, reference)]
    return typicality_test_of(*scores, num_permutations=num_permutations, seed=seed)


def typicality_test_of(
    batch_scores: PointScores, reference_scores: PointScores, *, num_permutations: int = 999, seed: int = 0
) -> BatchTypicality:
    """The same for scores that are known, which many batches can be tested by without new passes through a density.

    Args:
        batch_scores: Those of the batch, from :func:`typicality_scores`.
        reference_scores: Those of the reference points, 40 at least.
        num_permutations: Number of permutations.
        seed: Of the permutations.

    Raises:
        ValueError: As :func:`typicality_test`.

    Example:
        >>> normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> batch, reference = (typicality_scores(normal.log_prob, x) for x in (torch.zeros(10, 2) + 5, normal.sample((100,))))
        >>> typicality_test_of(batch, reference).typical
        False
    """
    for scores in (batch_scores, reference_scores):
        if not isinstance(scores, PointScores):
            raise ValueError(f"scores must be what typicality_scores returns, got {type(scores).__name__}")
    if not isinstance(num_permutations, int) or isinstance(num_permutations, bool) or num_permutations < 19:
        raise ValueError(f"num_permutations must be an integer of at least 19, got {num_permutations!r}")
    if batch_scores.points.shape[1:] != reference_scores.points.shape[1:] or not len(batch_scores):
        shapes = [tuple(scores.points.shape) for scores in (batch_scores, reference_scores)]
        raise ValueError(f"scores must be of points of one shape, and the batch must hold one at least, got {shapes}")
    _check_count(len(reference_scores))
    _check_finite(reference_scores)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    if len(reference_scores) > _MOST:
        reference_scores = reference_scores[torch.randperm(len(reference_scores), generator=generator, device="cpu")[:_MOST]]
    size, total = len(batch_scores), len(batch_scores) + len(reference_scores)
    # The first row is the batch itself, the others are batches that might as well have been it.
    keys = torch.rand(num_permutations, total, generator=generator, dtype=torch.float64, device="cpu")
    chosen = torch.cat([torch.arange(size, device="cpu")[None], keys.topk(size, dim=1).indices])
    by_scores, shift = _score_statistic(batch_scores, reference_scores, chosen)
    statistics = {"scores": by_scores, "points": _discrepancy(batch_scores.points, reference_scores.points, chosen)}
    shares = torch.stack([_share_as_extreme(value) for value in statistics.values()])
    p_value = float(_share_as_extreme(-shares.amin(0))[0])
    return BatchTypicality(
        p_value, shift, {name: float(share[0]) for name, share in zip(statistics, shares, strict=True)}, size, len(reference_scores)
    )


def _share_as_extreme(statistic: Tensor) -> Tensor:
    """For each entry, the share of all that are as large."""
    ordered = statistic.sort().values
    below = torch.searchsorted(ordered, statistic - 1e-12 * statistic.abs().clamp_min(1.0))
    return 1 - below.double() / len(statistic)


def _score_statistic(batch: PointScores, reference: PointScores, chosen: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The largest departure of means and spreads of scores for each choice of points, and the shifts of the first."""
    from scipy.stats import rankdata  # takes long to import

    right, found = reference.matrix, batch.matrix
    # What has no density is as untypical as can be: further down than all.
    low = right.min(0).values - 10 * right.std(0) - 1
    pooled = torch.cat([torch.where(torch.isfinite(found), found, low), right])
    # Ranks, for heavy tails of scores would drown the test; ties share theirs, or the order of the pool would count.
    ranks = torch.from_numpy(rankdata(pooled.numpy(), axis=0))
    rows = ((ranks - ranks.mean(0)) / ranks.std(0).clamp_min(1e-12))[chosen]
    departures = torch.cat([rows.mean(-2), rows.square().mean(-2) - 1], -1)
    departures = departures / departures.std(0).clamp_min(1e-12)
    return departures.abs().amax(-1), {name: float(departures[0, i]) for i, name in enumerate(_NAMES)}


def _discrepancy(batch: Tensor, reference: Tensor, chosen: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between chosen points and all others, up to a factor, for each choice."""
    far = 10 * reference.abs().max()
    pooled = torch.cat([torch.where(torch.isfinite(batch), batch, far), reference])
    if reference.dim() == 2:
        pooled = pooled / reference.std(0).clamp_min(1e-12)
    pooled = pooled.flatten(1)
    distances = torch.cdist(pooled, pooled)
    width = distances[~torch.eye(len(pooled), dtype=torch.bool, device="cpu")].median().clamp_min(1e-12)
    kernel = (-0.5 * (distances / width).square()).exp()
    means = kernel.mean(0)
    kernel = kernel - means - means[:, None] + means.mean()  # a mean of the chosen then says that of the others
    indicator = torch.zeros(len(chosen), len(pooled), dtype=pooled.dtype, device="cpu").scatter_(1, chosen, 1.0)
    return ((indicator @ kernel) * indicator).sum(1)


@dataclass(frozen=True)
class PointScores:
    """What is looked at of points.

    Args:
        log_prob: Their log-densities, ``(N,)``, float64.
        gradient: Logs of the norms of the gradients of these, ``(N,)``.
        points: The points, ``(N, *event)``.

    Example:
        >>> scores = PointScores(torch.zeros(5), torch.zeros(5), torch.zeros(5, 2))
        >>> len(scores[:2])
        2
    """

    log_prob: Tensor
    gradient: Tensor
    points: Tensor

    def __len__(self) -> int:
        return len(self.log_prob)

    def __getitem__(self, index: Any) -> PointScores:
        return PointScores(self.log_prob[index], self.gradient[index], self.points[index])

    @property
    def matrix(self) -> Tensor:
        """Log-densities and gradients as columns."""
        return torch.stack([self.log_prob, self.gradient], 1)


@dataclass(frozen=True)
class AnomalyScores:
    """How unusual single points are.

    Args:
        log_prob: Their log-densities, nats, ``(M,)``; minus infinity where there is none.
        p_value: Probability that a point of the right kind is as unusual, ``(M,)``; small for an anomaly. Not below the share that
            the number of reference points allows.

    Example:
        See :func:`anomaly_scores`.
    """

    log_prob: Tensor
    p_value: Tensor

    def anomalous(self, level: float = 0.01) -> Tensor:
        """Which points are anomalies, booleans ``(M,)``; this share of points of the right kind is called so wrongly, at most.

        Raises:
            ValueError: If the level is no probability.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}")
        return self.p_value <= level


def anomaly_scores(density: LogProb | ModuleDistribution, points: Tensor, reference: Tensor) -> AnomalyScores:
    r"""Scores of single points: how rare their log-density, or its gradient, is among reference points.

    A point is unusual if its log-density is lower *or higher* than that of nearly all reference points, or the norm of its gradient
    is: by likelihood alone, points of another kind often pass as the most likely of all. The p-value of each of both scores is
    :math:`2 \min(r, 1 - r)` for its rank r among the reference points, and twice the smaller one is taken.

    References:
        Nalisnick, Matsukawa, Teh, Gorur, Lakshminarayanan (2019), *Do deep generative models know what they don't know?*,
        https://arxiv.org/abs/1810.09136; Vovk, Gammerman, Shafer (2005), *Algorithmic learning in a random world*

    Args:
        density: Log-density of points ``(N, *event)``, ``(N,)``: a function, a distribution or a density fit.
        points: The points in question, ``(M, *event)``.
        reference: Points of the right kind, held out of training, ``(N, *event)``, 40 at least.

    Raises:
        ValueError: As :func:`typicality_test`.

    Example:
        >>> normal = dist.Normal(torch.zeros(20), 1.0).to_event(1)
        >>> strange = torch.stack([torch.zeros(20), torch.full((20,), 3.0)])
        >>> anomaly_scores(normal.log_prob, strange, normal.sample((1000,))).anomalous().tolist()
        [True, True]
    """
    _check(points, reference)
    right_scores, found_scores = typicality_scores(density, reference), typicality_scores(density, points)
    _check_finite(right_scores)
    right, found = right_scores.matrix, found_scores.matrix
    count = len(right)
    ordered = right.sort(0).values
    tails = []
    for i in range(right.shape[1]):
        column = found[:, i].contiguous()
        no_less = count - torch.searchsorted(ordered[:, i].contiguous(), column)
        no_more = torch.searchsorted(ordered[:, i].contiguous(), column, right=True)
        tail = (torch.minimum(no_less, no_more) + 1) / (count + 1)
        tails.append(torch.where(torch.isfinite(column), tail, torch.full_like(tail, 1 / (count + 1))))
    p_value = (2 * len(tails) * torch.stack(tails).amin(0)).clamp_max(1.0)
    return AnomalyScores(torch.where(torch.isnan(found[:, 0]), -torch.inf, found[:, 0]), p_value)


_NAMES = ("log-density", "gradient")


def typicality_scores(density: LogProb | ModuleDistribution, points: Tensor) -> PointScores:
    """What :func:`typicality_test` looks at: log-density, the log of the norm of its gradient, and the points, on the CPU.

    Args:
        density: As for :func:`typicality_test`.
        points: The points, ``(N, *event)``.

    Raises:
        ValueError: If the density does not give one log-density with a gradient for each point.

    Example:
        >>> typicality_scores(dist.Normal(torch.zeros(3), 1.0).to_event(1).log_prob, torch.ones(2, 3)).log_prob.shape
        torch.Size([2])
    """
    density = getattr(density, "distribution", density)  # of a DensityFit
    log_prob: LogProb = getattr(density, "log_prob", density)
    if not callable(log_prob):
        raise ValueError(f"density must be a function, a distribution or a density fit, got {type(density).__name__}")
    parts = []
    for part in points.detach().split(_PART):
        x = part.clone().requires_grad_()
        with torch.enable_grad():
            values = log_prob(x)
            if values.shape != (len(x),):
                raise ValueError(f"density must give one log-density for each of {len(x)} points, got shape {tuple(values.shape)}")
            found = torch.where(torch.isfinite(values), values, torch.zeros_like(values))
            if not found.requires_grad:
                raise ValueError("density must give log-densities that have gradients; call it without torch.no_grad() inside")
            (gradient,) = torch.autograd.grad(found.sum(), x)
        parts.append(torch.stack([values.detach(), gradient.flatten(1).norm(dim=1).clamp_min(1e-30).log()], 1).double().cpu())
    scores = torch.cat(parts)
    return PointScores(scores[:, 0], scores[:, 1], points.detach().double().cpu())


def _check(points: Tensor, reference: Tensor) -> None:
    for value in (points, reference):
        if not isinstance(value, Tensor) or value.dim() < 2 or not len(value) or not value.is_floating_point():
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"points and reference must be floating-point tensors of shape (N, *event), got {got}")
    if points.shape[1:] != reference.shape[1:]:
        raise ValueError(f"points must be such as the reference, {tuple(reference.shape[1:])}, got {tuple(points.shape[1:])}")
    _check_count(len(reference))


def _check_count(count: int) -> None:
    if count < _LEAST:
        raise ValueError(f"reference must hold {_LEAST} points at least for any claim, got {count}")


def _check_finite(scores: PointScores) -> None:
    bad = int((~torch.isfinite(scores.matrix).all(1)).sum())
    if bad:
        raise ValueError(f"{bad} reference points have no finite log-density: the density does not fit even these")
