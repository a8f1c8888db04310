"""The handler that puts values at a model's latent sites and reads off what they are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .sites import Site, is_deterministic, is_factor, is_subsample
from .structure import ModelStructure


class Evaluate(Messenger):  # type: ignore[misc]
    """Puts values at the latent sites and keeps each site's log-probability; lighter than a trace.

    Entries that ``obs_mask=`` imputes keep their prior also where a datum is known and the imputed value unused: this
    leaves every other posterior as it is, where Pyro's flat density there makes the joint improper. Observed NaN that
    are masked are stood in for by a valid datum, since they would make the gradient NaN through ``0 * NaN``.

    Args:
        values: A value per latent site.
        structure: What :func:`read_model` found.
        shapes: Whether values have exactly the sites' shapes, and are checked to.

    Attributes:
        log_probs: Scaled and masked log-probability of every site.
        pointwise: Masked, unscaled log-probability of the observed sites.
        deterministic: Values of the deterministic sites.
        priors: Distribution of every latent site.
        indices: Indices that subsampled plates drew.
        subsample_sizes: Number of elements of plates that draw, and of those drawn.
    """

    def __init__(self, values: Mapping[str, Tensor], structure: ModelStructure, shapes: bool = True) -> None:
        super().__init__()
        self.values, self.structure, self.shapes = values, structure, shapes
        self.given_indices: Mapping[str, Tensor] = {}
        self.log_probs: dict[str, Tensor] = {}
        self.pointwise: dict[str, Tensor] = {}
        self.deterministic: dict[str, Tensor] = {}
        self.priors: dict[str, Any] = {}
        self.indices: dict[str, Tensor] = {}
        self.subsample_sizes: dict[str, tuple[int, int]] = {}
        self._reached = 0

    def _pyro_sample(self, msg: Site) -> None:
        name = msg["name"]
        if is_subsample(msg):
            if msg["value"] is None:  # else the model itself says which rows it has
                self.subsample_sizes[name] = (msg["fn"].size, msg["fn"].subsample_size or msg["fn"].size)
                msg["value"] = self.given_indices.get(name)
            return
        if msg["is_observed"]:
            return
        value = self.values.get(name)
        if value is None:
            raise ValueError(
                f"latent site {name!r} was not there when the model was read; the model must have the same latent "
                f"sites in every call"
            )
        if self.shapes and msg["fn"].shape() != value.shape:
            raise ValueError(
                f"latent site {name!r} had shape {tuple(value.shape)} when the model was read and has "
                f"{tuple(msg['fn'].shape())} now; the model must have the same latent sites in every call"
            )
        msg["value"] = value
        self.priors[name] = msg["fn"]
        self._reached += 1

    def _pyro_post_sample(self, msg: Site) -> None:
        name, value, mask = msg["name"], msg["value"], msg["mask"]
        if is_subsample(msg):
            self.indices[name] = value
            return
        if is_deterministic(msg):
            self.deterministic[name] = value
            return
        stand_in = self.structure.stand_ins.get(name)
        if stand_in is not None and msg["is_observed"]:
            value = torch.where(torch.isnan(value), stand_in, value)
        if name in self.structure.imputed:
            mask = None
        log_prob = msg["fn"].log_prob(value, *msg["args"], **msg["kwargs"])
        self.log_probs[name] = scale_and_mask(log_prob, msg["scale"], mask)
        if msg["is_observed"] and not is_factor(msg):
            self.pointwise[name] = scale_and_mask(log_prob, 1.0, mask)

    def check_all_reached(self) -> None:
        """Refuse a run that left out a latent site.

        Raises:
            ValueError: If there is one; the message names it.
        """
        if self._reached != len(self.values):
            missing = sorted(set(self.values) - set(self.log_probs))
            raise ValueError(
                f"latent sites {missing} were there when the model was read and are not now; the model must have the "
                f"same latent sites in every call"
            )
