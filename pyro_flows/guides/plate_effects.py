"""The priors of local latents at values of the latents on which they hang."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_flows.model.plates import PlateReader
from pyro_flows.model.sites import InitToSupport, Site, is_subsample, location_and_log_scale

#: Change of a log-scale with other latents above which it is one that depends on them.
_DEPENDS = 1e-3
#: Bound of log-scales: what is beyond has no place in single precision.
_BOUND = 20.0
#: Log-precision of no prior at all.
_NONE = -200.0

Prior = tuple[Tensor, Tensor]
Model = Callable[..., Any]


class _PriorReader(poutine.messenger.Messenger):  # type: ignore[misc]
    """Notes location and log-scale of the priors of some sites while a model runs, and ends the run after the last.

    Args:
        names: The sites.
        values: Values of latent sites.
        starts: Values of others, used where their shape fits.
        call: The call, whose indices the plates take.
    """

    def __init__(self, names: Sequence[str], values: Mapping[str, Tensor], starts: Mapping[str, Tensor], call: PlateReader) -> None:
        super().__init__()
        self.values, self.starts, self.call = values, starts, call
        self.awaited = set(names)
        self.found: dict[str, Prior | None] = {}

    def _pyro_sample(self, msg: Site) -> None:
        name = msg["name"]
        if is_subsample(msg):
            if msg["value"] is None and name in self.call.calls:
                msg["value"] = self.call.calls[name].indices
            return
        if msg["is_observed"]:
            return
        if name in self.awaited:
            self.found[name] = location_and_log_scale(msg["fn"], torch.Size(msg["fn"].shape()))
            self.awaited.discard(name)
            if not self.awaited:
                raise _AllFoundSignal
        if name in self.values:
            msg["value"], msg["done"] = self.values[name], True
        elif name in self.starts:
            known = self.starts[name]
            msg["value"] = known if known.shape == msg["fn"].shape() else InitToSupport(_draw)(msg)
            msg["done"] = True


class _AllFoundSignal(Exception):  # noqa: N818, it is no error
    """All priors have been noted."""


def _draw(site: Site) -> Tensor:
    return site["fn"]()  # type: ignore[no-any-return]


class PlateEffects:
    """Which local latents are effects: those of a location-scale family, or log-normal, whose scale is a latent of fewer plates.

    Args:
        starts: A value of every latent site, as at setup.
        event_dims: Event dimensions of every latent site.
        depth: Batch dimensions of the sites, to the left of which draws stand.

    Attributes:
        names: The effects.
        together: Whether the model takes many draws at once, up to the last effect.

    Example:
        >>> PlateEffects({}, {}, 1).names
        frozenset()
    """

    def __init__(self, starts: Mapping[str, Tensor], event_dims: Mapping[str, int], depth: int) -> None:
        self.starts, self.event_dims, self.depth = starts, event_dims, depth
        self.names: frozenset[str] = frozenset()
        self.together = False

    def find(
        self,
        model: Model,
        groups: Mapping[tuple[str, ...], Sequence[str]],
        parents: Mapping[str, Sequence[str]],
        moved: Sequence[Mapping[str, Tensor]],
        call: PlateReader,
    ) -> None:
        """Look for effects.

        Args:
            model: A Pyro model.
            groups: Latent sites by their plates.
            parents: The latents on which the prior of each depends.
            moved: A few values of all latent sites.
            call: The call at setup.
        """
        home = {name: plates for plates, names in groups.items() for name in names}
        candidates = [
            name for name, plates in home.items()
            if plates and parents.get(name) and all(home[parent] != plates for parent in parents[name])
        ]  # fmt: skip
        if not candidates:
            return
        single = [_run(model, candidates, values, self.starts, call) for values in moved]
        again = _run(model, candidates, moved[0], self.starts, call)
        names = []
        for name in candidates:
            found = [priors[name] for priors in (*single, again)]
            priors = [prior for prior in found if prior is not None]
            if len(priors) < len(found) or not all(_same(a, b) for a, b in zip(priors[0], priors[-1], strict=True)):
                continue
            scales = torch.stack([log_scale for _, log_scale in priors[:-1]])
            if bool(torch.isfinite(scales).all()) and float(scales.std(0).max()) > _DEPENDS:
                names.append(name)
        self.names = frozenset(names)
        if names:
            self.together = self._agrees(model, names, moved, single, call)

    def _agrees(
        self,
        model: Model,
        names: Sequence[str],
        moved: Sequence[Mapping[str, Tensor]],
        single: Sequence[Mapping[str, Prior | None]],
        call: PlateReader,
    ) -> bool:
        """Whether a run at all values at once finds the priors of single runs."""
        stacked = {
            name: torch.stack([values[name].reshape(self._padding(name, values[name]) + values[name].shape) for values in moved])
            for name in moved[0]
        }
        try:
            together = _run(model, names, stacked, self.starts, call)
        except Exception:  # whatever a model may raise that is not written for one more dimension; alone it ran
            return False
        for name in names:
            for part, values in enumerate(together[name] or ()):
                for i in range(len(moved)):
                    expected = single[i][name][part]  # type: ignore[index]
                    lead = values.expand(len(moved), *values.shape[1:])[i] if values.dim() > self._rank(name) else values
                    if lead.numel() != expected.numel() or not _same(lead.reshape(expected.shape), expected):
                        return False
        return True

    def _rank(self, name: str) -> int:
        return self.depth + self.event_dims[name]

    def _padding(self, name: str, value: Tensor) -> tuple[int, ...]:
        return (1,) * (self._rank(name) - value.dim())

    def priors(self, model: Model, names: Sequence[str], values: Mapping[str, Tensor], call: PlateReader) -> dict[str, Prior]:
        """Location and log-precision of the priors of some effects, in unconstrained coordinates.

        Args:
            model: The model.
            names: The effects.
            values: Values ``(*, site shape)`` of the latents on which they hang, with draws to the left of all plates.
            call: The call.

        Returns:
            Two tensors ``(*, site shape)`` for each.

        Raises:
            ValueError: If a prior is of another family than at setup, or not finite.
        """
        lead = torch.broadcast_shapes(*[value.shape[: max(value.dim() - self._rank(n), 0)] for n, value in values.items()])
        if self.together:
            found = _run(model, names, values, self.starts, call)
        else:
            rows = []
            for i in range(lead.numel()):
                picked = {n: self._pick(n, value, lead, i) for n, value in values.items()}
                rows.append(_run(model, names, picked, self.starts, call))
            found = {name: self._stack(name, [row[name] for row in rows], lead) for name in names}
        result = {}
        for name in names:
            prior = found[name]
            if prior is None:
                raise ValueError(
                    f"the prior of latent site {name!r} was of a location-scale family at setup and is of another one in this "
                    f"call; the guide needs the same in every call"
                )
            loc, log_scale = prior
            result[name] = loc, -2 * log_scale.clamp(-_BOUND, _BOUND)
        return result

    def _pick(self, name: str, value: Tensor, lead: torch.Size, i: int) -> Tensor:
        """The value of one draw, of the shape that the site has without draws."""
        extra = max(value.dim() - self._rank(name), 0)
        if extra:
            value = value.expand(*lead, *value.shape[extra:]).reshape(-1, *value.shape[extra:])[i]
        shape = self.starts[name].shape
        return value.reshape(value.shape[value.dim() - len(shape) :]) if value.dim() > len(shape) else value

    def _stack(self, name: str, priors: Sequence[Prior | None], lead: torch.Size) -> Prior | None:
        if any(prior is None for prior in priors):
            return None
        parts = []
        for part in range(2):
            values = torch.stack([prior[part] for prior in priors if prior is not None])
            shape = values.shape[1:]
            parts.append(values.reshape(*lead, *(1,) * (self._rank(name) - len(shape)), *shape))
        return parts[0], parts[1]


def _run(
    model: Model, names: Sequence[str], values: Mapping[str, Tensor], starts: Mapping[str, Tensor], call: PlateReader
) -> dict[str, Prior | None]:
    """Location and log-scale of the priors of some sites in a run of a model, None where there are none."""
    reader = _PriorReader(names, values, starts, call)
    with poutine.block(), reader:
        try:
            model(*call.args, **call.kwargs)
        except _AllFoundSignal:
            pass
    if reader.awaited:
        raise ValueError(
            f"latent sites {sorted(reader.awaited)} were there at setup and are not in this call; the guide needs the same in "
            f"every call"
        )
    return reader.found


def no_prior(like: Tensor) -> Prior:
    """Location and log-precision where nothing is known, of the shape of a tensor.

    Example:
        >>> no_prior(torch.ones(1))
        (tensor([0.]), tensor([-200.]))
    """
    return torch.zeros_like(like), torch.full_like(like, _NONE)


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)
