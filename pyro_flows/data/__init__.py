"""Small data sets that come with the package."""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EightSchools", "eight_schools"]


class EightSchools(NamedTuple):
    """Coaching effects in eight schools.

    Example:
        See :func:`eight_schools`.
    """

    y: Tensor
    sigma: Tensor
    school: tuple[str, ...]


def eight_schools(dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> EightSchools:
    r"""The eight-schools study: effects :math:`y_j` of coaching on test scores, their standard errors :math:`\sigma_j`.

    References:
        Rubin (1981), *Estimation in parallel randomized experiments*, Journal of Educational Statistics 6(4), 377-401.

    Args:
        dtype: Of ``y`` and ``sigma``. Default: torch's default dtype.
        device: Of ``y`` and ``sigma``. Default: torch's default device.

    Returns:
        ``y`` of shape ``(8,)`` and ``sigma`` of shape ``(8,)``, in points of the test, and the names of the schools.

    Example:
        >>> y, sigma, school = pf.data.eight_schools()
        >>> y
        tensor([28.,  8., -3.,  7., -1.,  1., 18., 12.])
    """
    text = resources.files(__name__).joinpath("eight_schools.json").read_text(encoding="utf-8")
    study = json.loads(text)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return EightSchools(
        y=torch.tensor(study["y"], dtype=dtype, device=device),
        sigma=torch.tensor(study["sigma"], dtype=dtype, device=device),
        school=tuple(study["school"]),
    )
