"""Draws of a model's latent and observed sites from their joint prior, all at once where that is right."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from tqdm import tqdm

from .rewrites import rewritten
from .sites import Site, is_deterministic, is_factor, is_subsample

_LARGEST = 10_000_000
_COMPARED = 4


@dataclass
class PriorDraws:
    """What :func:`prior_draws` found.

    Args:
        values: A tensor ``(S, site shape)`` per site.
        path: How they were drawn: ``"vmap"``, ``"plate"`` or ``"loop"``.
        reasons: Why faster ways were not taken.
        failures: What single runs raised, and how often; their draws are left out.

    Example:
        >>> PriorDraws({"x": torch.zeros(3)}, "vmap").path
        'vmap'
    """

    values: dict[str, Tensor]
    path: str
    reasons: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


class _Draw(Messenger):  # type: ignore[misc]
    """Draws every site, the observed ones too, or puts given values there; keeps values and log-probabilities."""

    def __init__(self, given: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.given = given or {}
        self.values: dict[str, Tensor] = {}
        self.log_probs: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if is_subsample(msg) or is_deterministic(msg) or is_factor(msg):
            return
        if msg["name"] in self.given:
            msg["value"] = self.given[msg["name"]]
        elif msg["is_observed"]:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_subsample(msg) or is_deterministic(msg) or is_factor(msg):
            return
        self.values[msg["name"]] = msg["value"]
        self.log_probs[msg["name"]] = msg["fn"].log_prob(msg["value"])


def prior_draws(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    num_draws: int,
    sites: Mapping[str, torch.Size],
    *,
    batch_dims: Mapping[str, int] | None = None,
    given: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> PriorDraws:
    """Run a model forward many times: its latents from their priors, and its data from their likelihood.

    The model runs once under ``torch.func.vmap``, or once inside a plate of draws; each of these is compared with single runs at
    the same values, site by site, and given up where a log-probability differs. Else it runs once per draw. A model that has
    hidden randomness beside its sample sites runs once per draw too, since single runs cannot be compared.

    Args:
        model: A Pyro model.
        args: Its arguments. Data among them say no more than their shape.
        kwargs: Its keyword arguments.
        num_draws: Number of draws S.
        sites: Shapes of the sites to keep, by name.
        batch_dims: Number of batch dimensions of each of these sites, by name; none where left out.
        given: Values ``(S, site shape)`` of some sites, which are not drawn then.
        progress: Show a progress bar where single runs are made.

    Raises:
        ValueError: If no run succeeds.

    Example:
        >>> def model(y=None):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> shapes = {"x": torch.Size(()), "y": torch.Size(())}
        >>> draws = prior_draws(model, (), {}, 100, shapes)
        >>> draws.values["y"].shape, draws.path
        (torch.Size([100]), 'vmap')
    """
    given, dims = dict(given or {}), dict(batch_dims or {})

    def single(values: Mapping[str, Tensor]) -> _Draw:
        draw = _Draw(values)
        with pyro.validation_enabled(False), poutine.block(), draw:
            model(*args, **kwargs)
        return draw

    reasons: list[str] = []
    size = max(1, _LARGEST // max(1, sum(shape.numel() for shape in sites.values())))
    starts = range(0, num_draws, min(size, num_draws))
    chunks = [{name: value[start : start + size] for name, value in given.items()} for start in starts]
    sizes = [min(size, num_draws - start) for start in starts]
    with torch.no_grad():
        for path, draw in (("vmap", _vmapped), ("plate", _in_plate)):
            try:
                first = draw(model, args, kwargs, single, chunks[0], sizes[0], sites, dims)
            except Exception as error:  # single runs tell what is wrong with the model itself
                reasons.append(f"{path}: {type(error).__name__}")
                continue
            differs = _differs(single, first, sites)
            if differs:
                reasons.append(f"{path}: {differs}")
                continue
            parts = [first.values]
            for chunk, count in zip(chunks[1:], sizes[1:], strict=True):
                parts.append(draw(model, args, kwargs, single, chunk, count, sites, dims).values)
            return PriorDraws({name: torch.cat([part[name] for part in parts]) for name in sites}, path, reasons)
        return _looped(single, given, num_draws, sites, reasons, progress)


def _vmapped(
    model: Any, args: Any, kwargs: Any, single: Any, given: Mapping[str, Tensor], count: int, sites: Any, dims: Mapping[str, int]
) -> _Draw:
    def run(dummy: Tensor, values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        draw = rewritten(lambda _: single(values))(dummy)
        return {name: draw.values[name] for name in sites}, {name: p.sum() for name, p in draw.log_probs.items() if name in sites}

    found = _Draw()
    dummy = torch.zeros(count, device=next(iter(given.values())).device if given else None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        found.values, found.log_probs = torch.func.vmap(run, randomness="different")(dummy, dict(given))
    return found


def _in_plate(
    model: Any, args: Any, kwargs: Any, single: Any, given: Mapping[str, Tensor], count: int, sites: Any, dims: Mapping[str, int]
) -> _Draw:
    most = max(dims.values(), default=0)
    # The plate's dimension is left of all batch dimensions, so that values need ones in between.
    spread = {n: v.reshape(count, *(1,) * (most - dims.get(n, 0)), *v.shape[1:]) for n, v in given.items()}
    draw = _Draw(spread)
    with pyro.validation_enabled(False), poutine.block(), draw, pyro.plate("_draws", count, dim=-1 - most):
        model(*args, **kwargs)
    found = _Draw()
    found.values = {name: draw.values[name].reshape(count, *shape) for name, shape in sites.items()}
    found.log_probs = {name: draw.log_probs[name].reshape(count, -1).sum(-1) for name in sites}
    return found


def _differs(single: Any, found: _Draw, sites: Mapping[str, torch.Size]) -> str | None:
    """Why draws made at once are not those of single runs, judged by the log-probability of a few; None where they are."""
    for i in range(min(_COMPARED, len(next(iter(found.values.values()))))):
        values = {name: value[i] for name, value in found.values.items()}
        try:
            runs = [single(values), single(values)]
        except Exception as error:
            return f"a single run at one of its draws raised {type(error).__name__}"
        for name, shape in sites.items():
            if name not in runs[0].values or runs[0].values[name].shape != shape or found.values[name].shape[1:] != shape:
                return f"site {name!r} is not in every run, or of another shape"
            alone, again = (run.log_probs[name].sum() for run in runs)
            scale = 1e3 * torch.finfo(alone.dtype).eps * (1 + alone.abs() + runs[0].log_probs[name].abs().sum())
            if not torch.equal(alone.nan_to_num(), again.nan_to_num()):
                return f"site {name!r} depends on randomness beside the sample sites"
            if not bool((found.log_probs[name][i] - alone).abs() <= scale) and not torch.equal(found.log_probs[name][i], alone):
                return f"site {name!r} has another density than in single runs"
    return None


def _looped(
    single: Any,
    given: Mapping[str, Tensor],
    num_draws: int,
    sites: Mapping[str, torch.Size],
    reasons: list[str],
    progress: bool,
) -> PriorDraws:
    rows: list[dict[str, Tensor]] = []
    failures: Counter[str] = Counter()
    for i in tqdm(range(num_draws), desc="simulating", disable=not progress):
        try:
            values = single({name: value[i] for name, value in given.items()}).values
            row = {name: values[name] for name in sites}
            if any(row[name].shape != shape for name, shape in sites.items()):
                raise ValueError(f"sites have shapes { {name: tuple(row[name].shape) for name in sites} }")
            rows.append(row)
        except Exception as error:
            failures[f"{type(error).__name__}: {error}"] += 1
    if not rows:
        message, _ = failures.most_common(1)[0]
        raise ValueError(f"the model raised in all {num_draws} runs; the first: {message}")
    return PriorDraws({name: torch.stack([row[name] for row in rows]) for name in sites}, "loop", reasons, failures)
