"""Real data of the tutorials that do not come with a package: read from the folder of shared data where it is there."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def radon() -> tuple[Tensor, Tensor, Tensor]:
    """County, floor (0: basement, 1: first floor) and log of radon in 919 houses of Minnesota.

    Without the folder of data: made up for 85 counties, from a hierarchy like that of the real ones.
    """
    path = SHARED / "posteriordb" / "data" / "radon_mn.json.zip"
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            raw = json.loads(archive.read(archive.namelist()[0]))
        return (
            torch.tensor(raw["county_idx"]) - 1,
            torch.tensor(raw["floor_measure"]).float(),
            torch.tensor(raw["log_radon"]).float(),
        )
    print("the folder of shared data is not here: made-up radon")
    generator = torch.Generator().manual_seed(0)
    county = torch.cat([torch.arange(85), torch.randint(85, (834,), generator=generator)]).sort().values
    floor = (torch.rand(919, generator=generator) < 0.17).float()
    level = 1.45 + 0.3 * torch.randn(85, generator=generator)
    return county, floor, level[county] - 0.7 * floor + 0.73 * torch.randn(919, generator=generator)


def earthquakes() -> Tensor:
    """Places of strong earthquakes as unit vectors ``(N, 3)``, each place once.

    Without the folder of data: made up along two great circles.
    """
    path = SHARED / "earth" / "quakes_all.csv"
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        rows = sorted({tuple(float(cell) for cell in line.split(",")[:2]) for line in lines[1:]})
        latitude, longitude = torch.tensor(rows).deg2rad().T
        return torch.stack([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()], -1)
    print("the folder of shared data is not here: made-up earthquakes")
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(2000, generator=generator)
    circle = torch.stack([angle.cos(), angle.sin(), torch.zeros(2000)], -1)
    circle[1000:] = circle[1000:].roll(1, -1)
    points = circle + 0.1 * torch.randn(2000, 3, generator=generator)
    return points / points.norm(dim=-1, keepdim=True)
