"""Ranks of true values among posterior draws, and what they say of the posteriors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pyro_flows.diagnostics.bands import plot_bands
from pyro_flows.diagnostics.numbers import numbered
from pyro_flows.diagnostics.printed import Printed
from pyro_flows.diagnostics.uniformity import LEVEL, Uniformity, departure, uniformity_test

#: Names of the statistics of all latents together.
JOINT = ("coverage", "tarp", "tarp, near")


@dataclass(frozen=True)
class Calibration(Printed):
    r"""Ranks of true values among posterior draws, of simulated data sets: uniform, if posteriors are right.

    Of each latent number the rank is the number of draws below the true value. Of all latents together, ``"coverage"`` is the
    number of draws that are less dense than the truth under the guide (expected coverage of regions of highest density), and
    ``"tarp"`` the number of draws nearer to a point than the truth is. The point hangs on the data: it is the truth of the data set
    that is most alike (``"tarp, near"``, which finds posteriors that know too little of the data), or two sd away from there.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman (2018), *Validating Bayesian inference algorithms with simulation-based
        calibration*, https://arxiv.org/abs/1804.06788;
        Lemos, Coogan, Hezaveh, Perreault-Levasseur (2023), *Sampling-based accuracy testing of posterior estimators for general
        inference*, https://arxiv.org/abs/2302.03026

    Args:
        ranks: Integers from 0 to S, ``(N,)``, by latent number or joint statistic.
        num_draws: The number S of draws.
        failures: What kept simulations from being counted, and how often.

    Raises:
        ValueError: If there are no ranks, or they differ in number.

    Example:
        >>> study = ranks_of({"x": torch.randn(500)}, {"x": torch.randn(500, 99)})
        >>> study.p_value > 0.01, sorted(study.ranks)
        (True, ['tarp', 'x'])
    """

    ranks: Mapping[str, Tensor]
    num_draws: int
    failures: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name, value in self.ranks.items()}
        if not sizes or len(set(sizes.values())) != 1:
            raise ValueError(f"ranks must hold tensors of one length, got {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.ranks.values())))

    def test(self, name: str) -> Uniformity:
        """Test the ranks of one latent number or joint statistic.

        Raises:
            ValueError: If there are none by this name.
        """
        if name not in self.ranks:
            raise ValueError(f"there are no ranks of {name!r}; known are {list(self.ranks)}")
        return uniformity_test(self.ranks[name], self.num_draws)

    @property
    def p_values(self) -> dict[str, float]:
        """That of each latent number and joint statistic."""
        return {name: self.test(name).p_value for name in self.ranks}

    @property
    def p_value(self) -> float:
        """Of all together: the smallest, times their number."""
        found = self.p_values.values()
        return min(1.0, min(found) * len(found))

    @property
    def calibrated(self) -> bool:
        """Whether nothing speaks against it at a level of 5 %."""
        return self.p_value >= LEVEL

    def coverage(self, level: float = 0.9, name: str | None = None) -> tuple[float, float]:
        """Share of true values in central intervals of a probability, and its standard error.

        Args:
            level: Probability of the intervals, between 0 and 1.
            name: Of which latent number; None for the regions of highest density of all together where their ranks are known, else
                for the mean over latent numbers.

        Raises:
            ValueError: If the level is no probability, or there are no ranks by this name.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}")
        if name is None and "coverage" not in self.ranks:
            shares = [self.coverage(level, latent)[0] for latent in self.ranks if latent not in JOINT]
            share = sum(shares) / len(shares) if shares else math.nan
        else:
            name = name or "coverage"
            self.test(name)
            # Half a rank's width is in the middle of its cell.
            at = (self.ranks[name].double() + 0.5) / (self.num_draws + 1)
            inside = at > 1 - level if name == "coverage" else at < level if name in JOINT else (2 * at - 1).abs() < level
            share = float(inside.double().mean())
        # Of a share that is near 0 or 1 the error is that of the level.
        return share, math.sqrt(level * (1 - level) / len(self))

    def bias(self, name: str) -> tuple[float, float]:
        """Mean of the ranks' fraction minus one half, and its standard error: positive where the posterior is too low."""
        at = self._at(name)
        return float(at.mean() - 0.5), math.sqrt(1 / 12 / len(at))

    def spread(self, name: str) -> tuple[float, float]:
        """Ratio of the ranks' variance to that of uniform ones, and its standard error: above 1 where a posterior is too narrow."""
        at = self._at(name)
        return float(12 * (at - 0.5).square().mean()), math.sqrt(0.8 / len(at))

    def _at(self, name: str) -> Tensor:
        self.test(name)
        return (self.ranks[name].double() + 0.5) / (self.num_draws + 1)

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        p_values = self.p_values
        worst = min(p_values, key=lambda name: p_values[name])
        count = f"{len(self)} simulated data sets"
        if self.calibrated:
            share, error = self.coverage(0.9)
            return (
                f"Nothing in {count} speaks against calibration (p = {self.p_value:.2f}); regions of 90 % held the truth in "
                f"{share:.1%} ± {error:.1%} of them."
            )
        if worst == "coverage":
            what = "overconfident" if self.bias(worst)[0] < 0 else "too wide"
        elif worst in JOINT:
            what = "not those of the model"
        else:
            what = departure(self._at(worst))
        of = "of all latents" if worst in JOINT else f"of {worst!r}"
        return f"Not calibrated (p = {self.p_value:.2g}, {count}): posteriors {of} are {what}."

    def __str__(self) -> str:
        lines = [f"{'':<24}{'p':>8}{'coverage of 90 %':>20}{'shift':>10}{'spread':>10}"]
        for name, p_value in self.p_values.items():
            share, error = self.coverage(0.9, name)
            lines.append(
                f"{name:<24}{p_value:>8.3f}{share:>13.3f} ± {error:.3f}{self.bias(name)[0]:>+10.3f}{self.spread(name)[0]:>10.3f}"
            )
        lines.append(self.sentence)
        if self.failures:
            lines.append("Not counted: " + "; ".join(f"{count} x {what}" for what, count in self.failures.items()))
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> object:
        """Differences of the ranks' distribution functions from the uniform one, with bands that hold 95 % of them as a whole.

        Args:
            path: Where to save the picture; None not to.

        Returns:
            The matplotlib figure.
        """
        return plot_bands({name: self.test(name) for name in self.ranks}, path=path)


def ranks_of(
    truth: Mapping[str, Tensor],
    draws: Mapping[str, Tensor],
    *,
    log_prob_truth: Tensor | None = None,
    log_prob_draws: Tensor | None = None,
    data: Tensor | None = None,
    seed: int = 0,
) -> Calibration:
    """Ranks of true values among posterior draws of many simulated data sets.

    Args:
        truth: Values ``(N, *shape)`` by site.
        draws: Posterior draws ``(N, S, *shape)`` by site.
        log_prob_truth: Log-density of the true values under the guide, ``(N,)``, for ranks of coverage.
        log_prob_draws: Those of the draws, ``(N, S)``.
        data: The data, ``(N, P)``, by which TARP takes its points.
        seed: Of ties, which are broken at random, and of the direction of TARP's points.

    Raises:
        ValueError: If shapes do not fit, or values are not finite.

    Example:
        See :class:`Calibration`.
    """
    if not truth or truth.keys() != draws.keys():
        raise ValueError(f"truth and draws must hold the same sites, got {sorted(truth)} and {sorted(draws)}")
    flat_truth, flat_draws, names = [], [], []
    for name, value in truth.items():
        of_site = draws[name]
        if of_site.dim() != value.dim() + 1 or of_site.shape[:1] + of_site.shape[2:] != value.shape:
            raise ValueError(
                f"draws[{name!r}] must have shape (N, S, *shape) for truth of (N, *shape) = {tuple(value.shape)}, got "
                f"{tuple(of_site.shape)}"
            )
        flat_truth.append(value.detach().double().reshape(len(value), -1))
        flat_draws.append(of_site.detach().double().reshape(*of_site.shape[:2], -1))
        names += numbered(name, value.shape[1:])
    x, z = torch.cat(flat_truth, -1), torch.cat(flat_draws, -1)
    if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(z).all()):
        raise ValueError("truth and draws must be finite; leave simulations out that failed")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    count = z.shape[1]
    found = {name: _rank(z[..., i], x[:, i], generator) for i, name in enumerate(names)}
    if log_prob_truth is not None and log_prob_draws is not None:
        found["coverage"] = _rank(log_prob_draws.detach().double(), log_prob_truth.detach().double(), generator)
    if count >= 3 and len(x) >= 3:
        found["tarp"] = _tarp(x, z, data, 2.0, generator)
        if data is not None:
            found["tarp, near"] = _tarp(x, z, data, 0.0, generator)
    return Calibration(found, count)


def _tarp(x: Tensor, z: Tensor, data: Tensor | None, offset: float, generator: torch.Generator) -> Tensor:
    """Ranks of the distance to a point that hangs on the data but not on the truth.

    It is the truth of the data set that is most alike, or the mean of half of the draws, and from there some sd in a direction that
    is the same for all data sets: from points on all sides errors of location would cancel. The other half is ranked, so that truth
    and draws are exchangeable where the posterior is right; the rank is brought back to the number of all draws.
    """
    half = z.shape[1] // 2
    known, ranked = z[:, :half], z[:, half:]
    scale = x.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    around = known.mean(1)
    if data is not None:
        around = torch.cat([around[:1], x[_nearest(data.detach().double().reshape(len(x), -1))][1:]])
    way = torch.randn(x.shape[1], generator=generator, dtype=x.dtype, device="cpu").to(x.device)
    spread = known.std(1) if half > 1 else scale.expand_as(x)
    points = around + offset * spread * way / way.norm()
    near = ((ranked - points[:, None]) / scale).square().sum(-1)
    rank = _rank(near, ((x - points) / scale).square().sum(-1), generator)
    # Uniform on S - half + 1 values to uniform on S + 1, by a uniform share within its own.
    share = (rank + torch.rand(rank.shape, generator=generator, device="cpu").to(rank.device)) / (ranked.shape[1] + 1)
    return (share * (z.shape[1] + 1)).long().clamp(max=z.shape[1])


def _nearest(data: Tensor) -> Tensor:
    """The earlier row that is nearest to each, ``(N,)``; of the first row itself.

    With earlier rows alone no two rows are each other's, so that ranks are independent.
    """
    scale = data.std(0)
    rows = (data - data.mean(0)) / torch.where(scale > 0, scale, torch.ones_like(scale))
    found, count = [], torch.arange(len(rows), device=rows.device)
    for numbers in count.split(512):
        distances = torch.cdist(rows[numbers], rows)
        found.append(distances.masked_fill(count >= numbers[:, None], torch.inf).argmin(1))
    return torch.cat(found)


def _rank(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """Number of draws ``(N, S)`` below the truth ``(N,)``, ties broken at random."""
    below = (draws < truth[:, None]).sum(1)
    ties = (draws == truth[:, None]).sum(1)
    return below + (torch.rand(ties.shape, generator=generator, device="cpu").to(ties.device) * (ties + 1)).long().clamp(max=ties)
