"""The priors of local latents at values of the latents on which they hang."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_flows.model.plates import PlateReader
from pyro_flows.model.sites import InitToSupport, Site, is_subsample, location_and_log_scale

from .automatic_guide import fork_generators

#: Change of a log-scale with other latents above which it is one that depends on them.
_DEPENDS = 1e-3
#: Difference of two readings of a prior, in its scales, that is rounding.
_ROUNDING = 1e-4
#: Log-precision of no prior at all.
_NONE = -1e4

Prior = tuple[Tensor, Tensor]
Model = Callable[..., Any]


class _PriorReader(poutine.messenger.Messenger):  # type: ignore[misc]
    """Notes location and log-scale of the priors of some sites while a model runs, and ends the run after the last.

    Parameters of the model are held fixed: what the guide makes of its prior is no way to train the model.

    Args:
        names: The sites.
        values: Values of latent sites.
        starts: Values of others, used where their shape fits.
        call: The call, whose indices the plates take.

    Attributes:
        found: What was noted; None for a prior of no location-scale family.
        random: Sites before which the model drew random numbers.
    """

    def __init__(self, names: Sequence[str], values: Mapping[str, Tensor], starts: Mapping[str, Tensor], call: PlateReader) -> None:
        super().__init__()
        self.values, self.starts, self.call = values, starts, call
        self.awaited = set(names)
        self.found: dict[str, Prior | None] = {}
        self.random: set[str] = set()
        self._held: list[Tensor] = []

    def __enter__(self) -> _PriorReader:
        self._state = _random_state()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> Any:
        for leaf in self._held:
            leaf.requires_grad_(True)
        self._held.clear()
        return super().__exit__(*error)

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
            if not all(torch.equal(a, b) for a, b in zip(self._state, _random_state(), strict=True)):
                self.random.add(name)
            self.awaited.discard(name)
            if not self.awaited:
                raise _AllFoundSignal
        if name in self.values:
            msg["value"], msg["done"] = self.values[name], True
        elif name in self.starts:
            msg["value"], msg["done"] = _stand_in(msg, self.starts[name]), True

    def _pyro_post_param(self, msg: Site) -> None:
        value = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        if isinstance(leaf, Tensor) and leaf.is_leaf and leaf.requires_grad:
            leaf.requires_grad_(False)
            self._held.append(leaf)
        if isinstance(value, Tensor) and value.requires_grad:
            msg["value"] = value.detach()


class _AllFoundSignal(Exception):  # noqa: N818, it is no error
    """All priors have been noted."""


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


def _stand_in(msg: Site, known: Tensor) -> Tensor:
    """A value for a latent of which none is wanted: the known one where it fits."""
    shape = torch.Size(msg["fn"].shape())
    if known.dim() <= len(shape) and all(a in (1, b) for a, b in zip(reversed(known.shape), reversed(shape), strict=False)):
        return known.expand(shape)
    with fork_generators():
        torch.manual_seed(0)
        return InitToSupport(_draw)(msg)


def _draw(site: Site) -> Tensor:
    return site["fn"]()  # type: ignore[no-any-return]


class PlateEffects:
    """Which local latents are effects: those of a location-scale family, or log-normal, whose scale is a latent of fewer plates.

    Latents before which the model draws random numbers, such as indices of a plate without latents or a discrete latent, are none:
    the guide could not read the same prior twice.

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
        first, *others = (_run(model, candidates, values, self.starts, call) for values in moved)
        again = _run(model, candidates, moved[0], self.starts, call)
        names = []
        for name in candidates:
            runs = [run.found[name] for run in (first, *others)]
            priors = [prior for prior in (*runs, again.found[name]) if prior is not None]
            repeats = len(priors) == len(runs) + 1 and all(torch.equal(a, b) for a, b in zip(priors[0], priors[-1], strict=True))
            if not repeats or name in first.random:
                continue
            scales = torch.stack([log_scale for _, log_scale in priors])
            if bool(torch.isfinite(scales).all()) and float(scales.std(0).max()) > _DEPENDS:
                names.append(name)
        self.names = frozenset(names)
        # Two numbers of draws, of which one at least is that of no plate.
        self.together = bool(names) and all(self._agrees(model, names, moved[:count], call) for count in (len(moved), 3))

    def _agrees(self, model: Model, names: Sequence[str], moved: Sequence[Mapping[str, Tensor]], call: PlateReader) -> bool:
        """Whether a run at all values at once finds the priors of single runs."""
        stacked = {
            name: torch.stack([values[name].reshape(self._padding(name, values[name]) + values[name].shape) for values in moved])
            for name in moved[0]
        }
        try:
            together = _run(model, names, stacked, self.starts, call).found
            lead = torch.Size((len(moved),))
            single = [_run(model, names, values, self.starts, call).found for values in moved]
            return all(self._is_draw(together, lead, i, single[i]) for i in range(len(moved)))
        except Exception:  # whatever a model may raise that is not written for one more dimension; alone it ran
            return False

    def _is_draw(self, together: Mapping[str, Prior | None], lead: torch.Size, i: int, single: Mapping[str, Prior | None]) -> bool:
        """Whether priors that were read together are, at draw ``i``, those of a single run."""
        for name, expected in single.items():
            found = together[name]
            if found is None or expected is None:
                return False
            loc, log_scale = (self._draw_of(name, part, lead, i) for part in found)
            if loc.numel() != expected[0].numel():
                return False
            loc, log_scale = loc.reshape(expected[0].shape), log_scale.reshape(expected[1].shape)
            apart = ((loc - expected[0]) * (-expected[1]).exp()).abs().maximum((log_scale - expected[1]).abs())
            if not bool((apart <= _ROUNDING).all()):
                return False
        return True

    def _draw_of(self, name: str, value: Tensor, lead: torch.Size, i: int) -> Tensor:
        """What belongs to draw ``i``, with the dimensions of a site."""
        extra = value.dim() - self._rank(name)
        if extra <= 0:
            return value
        return value.expand(*lead, *value.shape[extra:]).reshape(-1, *value.shape[extra:])[i]

    def _rank(self, name: str) -> int:
        return self.depth + self.event_dims[name]

    def _padding(self, name: str, value: Tensor) -> tuple[int, ...]:
        return (1,) * (self._rank(name) - value.dim())

    def priors(
        self, model: Model, names: Sequence[str], values: Mapping[str, Tensor], call: PlateReader, *, checked: bool = True
    ) -> dict[str, Prior]:
        """Location and log-precision of the priors of some effects, in unconstrained coordinates; NaN where they are not finite.

        Where the model takes many draws at once, that with the least scale is compared with a single run, and all are read one by
        one if it differs.

        Args:
            model: The model.
            names: The effects.
            values: Values ``(*, site shape)`` of the latents on which they hang, with draws to the left of all plates.
            call: The call.
            checked: Whether to compare; not needed where the model itself is run at all the draws together.

        Returns:
            Two tensors ``(*, site shape)`` for each.

        Raises:
            ValueError: If a prior is of another family than at setup, or the model draws random numbers before it.
        """
        lead = torch.broadcast_shapes(*[value.shape[: max(value.dim() - self._rank(n), 0)] for n, value in values.items()])
        found = self._read_together(model, names, values, call, lead, checked) if self.together else None
        if found is None:
            rows = []
            for i in range(lead.numel()):
                rows.append(self._read_one(model, names, values, call, lead, i))
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
            bound = 0.45 * math.log(torch.finfo(log_scale.dtype).max)
            usable = torch.isfinite(loc) & torch.isfinite(log_scale)
            result[name] = loc, (-2 * log_scale.clamp(-bound, bound)).masked_fill(~usable, torch.nan)
        return result

    def _read_together(
        self, model: Model, names: Sequence[str], values: Mapping[str, Tensor], call: PlateReader, lead: torch.Size, checked: bool
    ) -> dict[str, Prior | None] | None:
        """Priors at all draws in one run; None if they are not those of single runs."""
        try:
            run = _run(model, names, values, self.starts, call)
        except Exception:  # as in _agrees; single runs raise it again if it is an error
            if lead.numel() > 1 and checked:
                return None
            raise
        _check_repeatable(run.random)
        if lead.numel() <= 1 or not checked:
            return run.found
        prior = run.found[names[0]]
        if prior is None:
            return run.found
        with torch.no_grad():
            extra = prior[1].dim() - self._rank(names[0])
            i = 0
            try:
                if extra > 0:
                    scales = prior[1].expand(*lead, *prior[1].shape[extra:]).reshape(lead.numel(), -1)
                    i = int(scales.amin(1).argmin())
                single = self._read_one(model, names, values, call, lead, i)
                return run.found if self._is_draw(run.found, lead, i, single) else None
            except RuntimeError:  # shapes that do not fit
                return None

    def _read_one(
        self, model: Model, names: Sequence[str], values: Mapping[str, Tensor], call: PlateReader, lead: torch.Size, i: int
    ) -> dict[str, Prior | None]:
        """Priors at one draw, with the shapes that the model has without draws."""
        picked = {}
        for name, value in values.items():
            value, shape = self._draw_of(name, value, lead, i), self.starts[name].shape
            picked[name] = value.reshape(value.shape[value.dim() - len(shape) :]) if value.dim() > len(shape) else value
        run = _run(model, names, picked, self.starts, call)
        _check_repeatable(run.random)
        return run.found

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
) -> _PriorReader:
    """Read location and log-scale of the priors of some sites in a run of a model."""
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
    return reader


def _check_repeatable(random: set[str]) -> None:
    if random:
        raise ValueError(
            f"the model draws random numbers before latent sites {sorted(random)}, which it did not at setup, as dropout does in "
            f"training; the guide cannot read the same prior twice: draw them later, or call .eval()"
        )


def no_prior(like: Tensor) -> Prior:
    """Location and log-precision where nothing is known, of the shape of a tensor.

    Example:
        >>> no_prior(torch.ones(1))
        (tensor([0.]), tensor([-10000.]))
    """
    return torch.zeros_like(like), torch.full_like(like, _NONE)
