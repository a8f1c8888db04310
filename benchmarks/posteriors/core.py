"""Posteriors with reference draws: what one is, where its data and draws come from."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3] / "shared/data/posteriordb"


@dataclass(frozen=True)
class Posterior:
    """A model with its data, and the names of its reference draws.

    Args:
        name: Name in posteriordb.
        model: The Pyro model.
        args: Its arguments.
        sites: Sites of the model and their number of elements, in the order of the reference, None for a scalar.
        reference: File of the reference draws, where it is not the name.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    sites: dict[str, int | None] = field(default_factory=dict)
    reference: str | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the reference draws."""
        return [
            column
            for site, size in self.sites.items()
            for column in ([site] if size is None else [f"{site}[{i + 1}]" for i in range(size)])
        ]

    def flat(self, draws: dict[str, Tensor]) -> Tensor:
        """Draws of the sites as ``(S, K)`` in the order of the reference, float64."""
        parts = [draws[site].double() for site in self.sites]
        return torch.cat([part.reshape(len(part), -1) for part in parts], -1)

    def draws(self) -> Tensor:
        """Reference draws, ``(chains, draws, K)``, float64."""
        chains = read(ROOT / "draws" / f"{self.reference or self.name}.json.zip")
        return torch.stack([torch.tensor([chain[c] for c in self.columns], dtype=torch.float64).T for chain in chains])

    def values(self) -> dict[str, Tensor]:
        """Reference draws as values of the sites, ``(S, ...)``."""
        flat = self.draws().flatten(0, 1)
        result, start = {}, 0
        for site, size in self.sites.items():
            result[site] = flat[:, start] if size is None else flat[:, start : start + size]
            start += size or 1
        return result


def read(path: Path) -> Any:
    """The one file of a zip, as JSON."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def data(name: str) -> dict[str, Any]:
    """A data set of posteriordb, its lists of numbers as float32 tensors."""
    found = read(ROOT / "data" / f"{name}.json.zip")
    return {key: torch.tensor(value, dtype=torch.float32) if isinstance(value, list) else value for key, value in found.items()}
