"""The loop of maximum likelihood on rows: minibatches, rows held out, early stop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .noted_run import training_entry

Rows = tuple[Tensor, ...]

_CLIP = 5.0
_WARMUP = 0.05


@dataclass
class LikelihoodRun:
    """How it went.

    Args:
        losses: Mean loss over the training rows in each epoch.
        validation_losses: Mean loss over the rows held out, at the start and after each epoch.
        best_epoch: Epoch whose state was kept; 0 for that of the start.
        skipped: Steps left out because their loss or gradient was not finite.
        stop_reason: ``"max_epochs"``, ``"no_progress"``, ``"max_time"`` or ``"interrupted"``.

    Example:
        >>> LikelihoodRun().best_epoch
        0
    """

    losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    skipped: int = 0
    stop_reason: str = "max_epochs"


def maximise_likelihood(
    module: nn.Module,
    loss: Callable[..., Tensor],
    train: Rows,
    held_out: Rows,
    *,
    lr: float,
    batch_size: int,
    max_epochs: int,
    patience: int,
    limit: float | None,
    bar: tqdm,
    hint: str,
    renew: Callable[[], Rows] | None = None,
) -> LikelihoodRun:
    """Train a module by Adam on minibatches of rows, and leave it in evaluation mode at the state that did best on rows held out.

    The step size warms up and decays along a cosine. Ctrl-C ends training at the best state so far.

    Args:
        module: What is trained.
        loss: Mean loss of rows, called with a slice of each tensor.
        train: Tensors whose rows are trained on.
        held_out: The same of the rows held out.
        lr: Largest step size.
        batch_size: Rows per step.
        max_epochs: Passes over the rows.
        patience: Epochs without progress on the rows held out before training stops.
        limit: Reading of ``time.monotonic`` at which training stops; None for no limit.
        bar: Progress bar, updated by one each epoch.
        hint: What to look for where steps are not finite, for the message.
        renew: Makes other rows to train on for each epoch but the first.

    Returns:
        What was done.

    Raises:
        ArithmeticError: If a tenth of the steps of an epoch is not finite.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> loss = lambda x, y: (layer(x) - y).square().mean()
        >>> options = {"lr": 0.1, "batch_size": 16, "max_epochs": 30, "patience": 30, "limit": None, "hint": ""}
        >>> run = maximise_likelihood(layer, loss, (x, 2 * x), (x, 2 * x), bar=tqdm(disable=True), **options)
        >>> round(layer.weight.item(), 1), run.stop_reason
        (2.0, 'max_epochs')
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("there is no parameter to train: all of them are frozen (requires_grad=False), or there are none")
    optimiser = torch.optim.Adam(parameters, lr=lr)
    batches = max(1, len(train[0]) // batch_size)
    total = max_epochs * batches

    def share(step: int) -> float:
        return min(1.0, (step + 1) / (_WARMUP * total + 1)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    entry = training_entry(module, [lr, batch_size, max_epochs, patience], limited=limit is not None)
    if entry is not None and entry.finished is not None:
        module.load_state_dict(entry.finished["module"])
        entry.resume()
        module.eval()
        return LikelihoodRun(**entry.finished["run"])
    run = LikelihoodRun(validation_losses=[_mean_loss(module, loss, held_out)])
    best_state = copy.deepcopy(module.state_dict())
    # Of the epoch under way: the order of the rows, the place in it, and the losses so far.
    order, place, losses = torch.empty(0, dtype=torch.long), 0, list[float]()
    if entry is not None and entry.running is not None:
        state = entry.running
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        run, best_state = LikelihoodRun(**state["run"]), state["best_state"]
        order, place, losses = state["order"].to(train[0].device), state["place"], state["losses"]
        entry.resume()
        bar.update(len(run.losses))

    def note() -> None:
        if entry is not None and entry.due():
            entry.note(
                {
                    "module": dict(module.state_dict()),
                    "optimiser": optimiser.state_dict(),
                    "run": vars(run),
                    "best_state": dict(best_state),
                    "order": order,
                    "place": place,
                    "losses": losses,
                }
            )

    def epoch_loss(rows: Rows) -> float:
        nonlocal order, place, losses
        if not place:
            order, losses = torch.randperm(len(rows[0]), device=rows[0].device), []
        why = ""
        for batch in order[: batches * batch_size].chunk(batches)[place:]:
            for group in optimiser.param_groups:
                group["lr"] = lr * share(len(run.losses) * batches + place)
            optimiser.zero_grad(set_to_none=True)
            try:
                value = loss(*[part[batch] for part in rows])
                value.backward()
            except (ArithmeticError, AssertionError) as error:  # a solver that did not get through, or torchdiffeq's adjoint
                why = f" ({error})"
            else:
                norm = nn.utils.clip_grad_norm_(parameters, _CLIP)
                if bool(torch.isfinite(value.detach()) & torch.isfinite(norm)):
                    optimiser.step()
                    losses.append(float(value.detach()))
            place += 1
            if renew is None and place < batches:  # rows of an epoch that are made anew are not noted
                note()
        place = 0
        skipped = batches - len(losses)
        run.skipped += skipped
        if skipped > max(1, batches // 10):
            raise ArithmeticError(f"{skipped} of {batches} steps had no loss or gradient that is finite{why}; {hint}")
        return sum(losses) / max(1, len(losses))

    rows = train
    try:
        for epoch in range(len(run.losses) + 1, max_epochs + 1):
            if renew is not None and epoch > 1:
                rows = renew()
            run.losses.append(epoch_loss(rows))
            run.validation_losses.append(_mean_loss(module, loss, held_out))
            found, best = run.validation_losses[-1], run.validation_losses[run.best_epoch]
            if found < best or (math.isnan(best) and not math.isnan(found)):
                run.best_epoch, best_state = epoch, copy.deepcopy(module.state_dict())
            bar.update()
            bar.set_postfix_str(f"held out {run.validation_losses[-1]:.3f}, best {run.validation_losses[run.best_epoch]:.3f}")
            if epoch - run.best_epoch >= patience:
                run.stop_reason = "no_progress"
                break
            if limit is not None and time.monotonic() > limit:
                run.stop_reason = "max_time"
                break
            note()
    except KeyboardInterrupt:
        run.stop_reason = "interrupted"
    module.load_state_dict(best_state)
    module.eval()
    if entry is not None and run.stop_reason != "interrupted":
        entry.finish({"module": dict(module.state_dict()), "run": vars(run)})
    return run


@torch.no_grad()
def _mean_loss(module: nn.Module, loss: Callable[..., Tensor], rows: Rows) -> float:
    module.eval()
    count = len(rows[0])
    parts: Sequence[Rows] = list(zip(*[part.split(4096) for part in rows], strict=True))
    value = sum(len(part[0]) * float(loss(*part)) for part in parts) / count
    module.train()
    return value


def check_likelihood_options(
    lr: float, batch_size: int, max_epochs: int, patience: int, validation_share: float, max_time: float | None
) -> None:
    """Refuse options of the loop that are out of range.

    Raises:
        ValueError: If one is; the message names it.

    Example:
        >>> check_likelihood_options(1e-3, 256, 100, 10, 0.1, None)
    """
    if not (isinstance(lr, (int, float)) and 0 < lr < math.inf):
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    for name, value in (("batch_size", batch_size), ("max_epochs", max_epochs), ("patience", patience)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1, got {validation_share!r}")
    if max_time is not None and not (isinstance(max_time, (int, float)) and max_time > 0):
        raise ValueError(f"max_time must be a positive number of seconds or None, got {max_time!r}")
