"""Whether conclusions hang on the prior: power-scaling sensitivity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .numbers import numbered
from .printed import Printed

#: Sensitivities from which on a component matters.
_MATTERS = 0.05


@dataclass(frozen=True)
class Sensitivity(Printed):
    r"""How much the posterior of each number changes as prior or likelihood are made a little stronger or weaker.

    Args:
        prior: Change of the posterior, as a cumulative Jensen-Shannon distance per doubling of the prior's exponent, by number.
        likelihood: The same of the likelihood.
        reliable: Whether the weights of the fit are, on which both rest.

    References:
        Kallioinen, Paananen, Bürkner, Vehtari (2024), *Detecting and diagnosing prior and likelihood sensitivity with
        power-scaling*, https://arxiv.org/abs/2107.14054

    Example:
        >>> print(Sensitivity({"mu": 0.2}, {"mu": 0.01}))
                                     prior  likelihood
        mu                           0.200       0.010  the prior says most, the data little
    """

    prior: Mapping[str, float]
    likelihood: Mapping[str, float]
    reliable: bool = True

    def diagnosis(self, name: str) -> str:
        """What the two sensitivities of a number mean, in words.

        Raises:
            ValueError: If there is no such number.
        """
        if name not in self.prior:
            raise ValueError(f"there is no number {name!r}; known are {list(self.prior)}")
        if math.isnan(self.prior[name]):
            return "it is constant, or not known"
        if not self.prior[name] >= _MATTERS:
            return "the prior does not matter"
        if self.likelihood[name] >= _MATTERS:
            return "prior and data both matter, and may disagree"
        return "the prior says most, the data little"

    @property
    def matters(self) -> list[str]:
        """Numbers for which the prior matters, the most sensitive first."""
        names = [name for name, value in self.prior.items() if value >= _MATTERS]
        return sorted(names, key=lambda name: -self.prior[name])

    def __str__(self) -> str:
        lines = [f"{'':<24}{'prior':>10}{'likelihood':>12}"]
        for name, value in self.prior.items():
            lines.append(f"{name:<24}{value:>10.3f}{self.likelihood[name]:>12.3f}  {self.diagnosis(name)}")
        if not self.reliable:
            lines.append("The weights of the fit are not reliable, and neither are these figures.")
        return "\n".join(lines)


def by_number(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Values of sites as values of numbers, ``"theta[0]"`` and so on.

    Example:
        >>> by_number({"mu": np.array(1.0), "theta": np.array([2.0, 3.0])})
        {'mu': 1.0, 'theta[0]': 2.0, 'theta[1]': 3.0}
    """
    return {
        number: float(value)
        for name, array in arrays.items()
        for number, value in zip(numbered(name, array.shape), array.reshape(-1), strict=True)
    }
