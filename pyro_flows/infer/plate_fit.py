"""``fit`` for guides of plates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from pyro_flows.guides import AutoPlateFlow
from pyro_flows.model import read_model
from pyro_flows.model.held_parameters import training_parameters

from .descent import Callback, Schedule
from .minibatches import Minibatches, train_on_minibatches
from .noted_run import current_folder, note_resumption, seconds_before, start_from
from .result import Fit


def fit_plates(
    model: Callable[..., Any],
    guide: AutoPlateFlow,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    minibatches: Iterable[Any] | None,
    num_particles: int | None,
    max_steps: int,
    max_time: float | None,
    schedule: Schedule | None,
    progress: bool,
    callback: Callback | None,
    seed: int | None,
) -> Fit:
    """:func:`fit` for a guide of plates, which takes minibatches.

    Args:
        model: A Pyro model.
        guide: The guide, of this model.
        args: Arguments of the model for all the data.
        kwargs: Keyword arguments of the model.
        minibatches: Arguments of each step; None for ``args``.
        num_particles: Draws per step; None for 8.
        max_steps: Steps at most.
        max_time: Seconds at most; None for no limit.
        schedule: Step sizes and stop rule.
        progress: Show a bar.
        callback: Called as ``callback(step, loss)``.
        seed: For the record.

    Returns:
        The fit; its guide is in evaluation mode.

    Raises:
        ValueError: If the guide is of another model, this enumerates sites, or a plate has another size at the minibatches than at
            ``args``.
        ArithmeticError: If too many steps are not finite.

    Example:
        See :func:`fit`.
    """
    folder = current_folder()
    began = time.monotonic() - seconds_before(folder)
    batches = Minibatches([args] if minibatches is None else minibatches, kwargs)
    first, _ = next(iter(batches))
    structure = read_model(model, first, kwargs, allow_local=True)
    if structure.enumerated:
        raise ValueError(
            f"sites {list(structure.enumerated)} are enumerated, which fit does for AutoFlow alone; train this guide by SVI with "
            f"TraceEnum_ELBO"
        )
    if guide._raw_model[0] is None:
        guide.set_model(model)
    elif guide._raw_model[0] != model:
        raise ValueError("guide was made for another model than the one to be fitted; give guide=AutoPlateFlow(model, ...)")
    guide.train()
    guide.setup(*first, **kwargs)
    start_from("guide", guide)
    if minibatches is not None:
        _check_sizes(guide, first, args, kwargs)
    parameters = structure.parameters()
    record: dict[str, Any] = {
        "guide": type(guide).__name__,
        "objective": "path",
        "num_particles": num_particles or 8,
        "seed": seed,
        "model_parameters": sorted(parameters),
        "missed_modes_not_sought": "a guide of plates has no search for them",
    }
    try:
        with training_parameters(parameters):
            training = train_on_minibatches(
                model,
                guide,
                batches,
                list(parameters.values()),
                num_particles=num_particles or 8,
                nesting=structure.max_plate_nesting,
                max_steps=max_steps,
                max_time=max_time,
                schedule=schedule,
                progress=progress,
                callback=callback,
                record=record,
            )
    finally:
        guide.eval()  # dropout is for training
    record.update(training.summary(), seconds=time.monotonic() - began)
    note_resumption(record, folder)
    return Fit(guide, None, training, record, model, args, kwargs)


def _check_sizes(guide: AutoPlateFlow, first: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse minibatches that are data sets of their own, and arguments for all the data that are not."""
    try:
        whole = guide.look(*args, **kwargs).calls
    except Exception as error:
        raise ValueError(
            f"args must be the model's arguments for all the data, on which draws and verdict rest; at those given the model "
            f"raises {type(error).__name__}: {error}"
        ) from error
    for name, plate in guide.look(*first, **kwargs).calls.items():
        if plate.size != whole[name].size:
            raise ValueError(
                f"plate {name!r} has size {plate.size} at the minibatches and {whole[name].size} at the arguments for all the data "
                f"(args); give it the full size in both: pyro.plate({name!r}, full_size, subsample=indices), with the indices "
                f"among the arguments, or subsample_size="
            )
