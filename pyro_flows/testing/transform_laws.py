"""The laws of a transform of vectors."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_flows.transforms.core import FlowTransform

from .case import Case, ConformanceError, Law, close, directions, law, require

LAWS: dict[str, Law] = {}


@law(LAWS)
def _round_trip(case: Case) -> None:
    transform = case.build()
    context = case.context()
    for points, tolerance, far in (
        (case.inputs(16), case.tolerance(1e-8, 1e-2), False),
        (case.inputs(8, scale=case.tolerance(10.0, 1.0)), case.tolerance(1e-4, 1e-2), case.dtype == torch.float64),
    ):
        for there, back, name in (
            (transform.forward_and_log_det, transform.inverse_and_log_det, "inverse of forward"),
            (transform.inverse_and_log_det, transform.forward_and_log_det, "forward of inverse"),
        ):
            middle, _ = there(points, context)
            found, expected = back(middle, context)[0], points
            if far:
                # A flow may squeeze by many orders of magnitude there, and what is lost to rounding is not to be had again.
                lost = torch.stack([_lost_to_rounding(there, context, x) for x in points])
                found, expected = found[~(lost > tolerance)], points[~(lost > tolerance)]
            close(found, expected, tolerance, name)


def _lost_to_rounding(direction: Callable[..., tuple[Tensor, Tensor]], context: Tensor | None, x: Tensor) -> Tensor:
    """By how much a point and one that has the same image to rounding may differ, relative to the point, with a margin."""
    flat = x.detach().double().flatten()
    jacobian = torch.autograd.functional.jacobian(lambda v: direction(v, context)[0].flatten(), x)
    smallest = torch.linalg.svdvals(jacobian.double().reshape(flat.numel(), flat.numel())).min()
    image = direction(x, context)[0].detach().double()
    return 30 * torch.finfo(x.dtype).eps * (1 + image.abs().max()) / smallest / (1 + flat.abs().max())


@law(LAWS)
def _log_det_is_that_of_autograd(case: Case) -> None:
    transform, context = case.build(), case.context()
    if transform.log_det_kind != "exact":
        return
    for name, method in directions(transform):
        for x in case.inputs(3):
            jacobian = torch.autograd.functional.jacobian(lambda v, m=method: m(v, context)[0], x)
            log_det = method(x, context)[1]
            require(log_det.dtype == case.dtype, f"{name} log-det has dtype {log_det.dtype}, expected {case.dtype}")
            close(log_det, torch.linalg.slogdet(jacobian)[1], case.tolerance(1e-8, 2e-3), f"{name} log-det against autograd")


@law(LAWS)
def _log_dets_are_opposite(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(16), case.context()
    y, forward = transform.forward_and_log_det(x, context)
    close(transform.inverse_and_log_det(y, context)[1], -forward, case.tolerance(1e-8, 2e-3), "inverse log-det against -forward")


@law(LAWS)
def _batch_shapes(case: Case) -> None:
    transform, context = case.build(), case.context()
    for name, method in directions(transform):
        for batch in ((), (3,), (2, 3), (0,)):
            x = case.inputs(*batch)
            y, log_det = method(x, context)
            require(y.shape == x.shape, f"{name}: output has shape {tuple(y.shape)} for input {tuple(x.shape)}")
            require(log_det.shape == batch, f"{name}: log-det has shape {tuple(log_det.shape)} for batch shape {batch}")
            for index in list(torch.ones(batch).nonzero().tolist())[:4]:
                row = method(x[tuple(index)], context)
                close(y[tuple(index)], row[0], case.tolerance(1e-9, 1e-3), f"{name}: a row of a batch against the row alone")
                close(log_det[tuple(index)], row[1], case.tolerance(1e-9, 1e-3), f"{name}: log-det of a row of a batch")


@law(LAWS)
def _context_broadcasts(case: Case) -> None:
    if not case.context_dim:
        return
    transform = case.build()
    for name, method in directions(transform):
        for batch, context_batch in (((4,), ()), ((4,), (4,)), ((4,), (2, 1)), ((), (3,)), ((4, 1), (3,))):
            x, context = case.inputs(*batch), case.context(*context_batch)
            full = torch.broadcast_shapes(batch, context_batch)
            y, log_det = method(x, context)
            require(
                y.shape == (*full, case.input_dim) and log_det.shape == full,
                f"{name}: shapes {tuple(y.shape)} and {tuple(log_det.shape)} for batches {batch} and {context_batch}",
            )
            rows, contexts = x.expand(*full, -1), context.expand(*full, -1)  # type: ignore[union-attr]
            for index in torch.ones(full).nonzero().tolist()[::3]:
                row = method(rows[tuple(index)], contexts[tuple(index)])
                close(y[tuple(index)], row[0], case.tolerance(1e-9, 1e-3), f"{name}: a row against the row with its context alone")
                close(log_det[tuple(index)], row[1], case.tolerance(1e-9, 1e-3), f"{name}: log-det of a row with its context")
    try:
        transform.forward_and_log_det(case.inputs(2), None)
    except ValueError:
        return
    raise ConformanceError("a conditional transform used without context must raise ValueError")


@law(LAWS)
def _gradients_reach_everything(case: Case) -> None:
    for direction in ("forward", "inverse"):
        transform = case.build()
        method = dict(directions(transform))[direction]
        x, context = case.inputs(8).requires_grad_(), case.context(8)
        if context is not None:
            context.requires_grad_()
        y, log_det = method(x, context)
        weights = torch.linspace(1, 2, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)
        total = (weights * y.sin()).sum() + (weights[..., 0] * log_det).sum()
        require(total.requires_grad, f"{direction}: the result has no gradient")
        total.backward()
        named = [("the input", x), *transform.named_parameters()]
        named += [] if context is None else [("the context", context)]
        for name, tensor in named:
            require(tensor.grad is not None, f"{direction}: no gradient to {name}")
            gradient = tensor.grad
            require(bool(torch.isfinite(gradient).all()), f"{direction}: the gradient to {name} is not finite")  # type: ignore[arg-type]
        # With one variable a reflection, for one, has nothing that a context could change.
        for name, tensor in (named[0], *(named[-1:] if context is not None and case.input_dim > 1 else [])):
            require(float(tensor.grad.abs().max()) > 0, f"{direction}: the gradient to {name} is zero")  # type: ignore[union-attr]


@law(LAWS)
def _gradients_are_right(case: Case) -> None:
    if case.dtype != torch.float64:
        return
    for direction in ("forward", "inverse"):
        transform, context = case.build(), case.context(3)
        method = dict(directions(transform))[direction]
        parameters = [p for p in transform.parameters() if p.numel()]
        x = case.inputs(3)

        def objective(method: Callable[..., tuple[Tensor, Tensor]] = method, x: Tensor = x, c: Tensor | None = context) -> Tensor:
            y, log_det = method(x, c)
            return y.sin().sum() + log_det.cos().sum()

        step = 1e-5
        generator = torch.Generator().manual_seed(case.seed + 4)
        gradients = torch.autograd.grad(objective(), parameters, allow_unused=True) if parameters else ()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                parameter += step * way
                up = objective()
                parameter -= 2 * step * way
                down = objective()
                parameter += step * way
            expected = (up - down) / (2 * step)
            found = torch.zeros_like(expected) if gradient is None else (gradient * way).sum()
            close(
                found,
                expected,
                max(1e-5, 10 * case.accuracy / step),
                f"{direction}: gradient to a parameter of shape {tuple(parameter.shape)}",
            )


@law(LAWS)
def _score_is_that_of_the_density(case: Case) -> None:
    if case.build().log_det_kind != "exact":
        return
    transform, context = case.build(), case.context(6)
    x = case.inputs(6)
    score = (-x).sin()
    y, log_det, found = transform.forward_with_score(x, score, context)
    expected = transform.forward_and_log_det(x, context)
    close(y, expected[0], case.tolerance(1e-9, 1e-3), "value beside the score")
    close(log_det, expected[1], case.tolerance(1e-9, 1e-3), "log-det beside the score")
    require(found.shape == y.shape, f"the score has shape {tuple(found.shape)}, expected {tuple(y.shape)}")
    require(not found.requires_grad, "the score must carry no gradient")
    require(y.requires_grad == expected[0].requires_grad, "the value beside the score lost its gradient")
    at = y.detach().requires_grad_()
    back, log_det_back = transform.inverse_and_log_det(at, context)
    # cos has the gradient -sin, so this is a log-density whose score at x is the one that was given.
    (truth,) = torch.autograd.grad(back.cos().sum() + log_det_back.sum(), at)
    close(found, truth, case.tolerance(1e-7, 1e-2), "score against autograd of the density")
    far = 1e4 * torch.ones(2, case.input_dim, dtype=case.dtype)
    finite = torch.isfinite(transform.forward_with_score(far, -far, case.context(2))[2]).all()
    require(bool(finite), "the score is not finite at inputs of 1e4")


@law(LAWS)
def _rows_are_independent(case: Case) -> None:
    transform, context = case.build(), case.context()
    for name, method in directions(transform):
        x = case.inputs(4)
        other = x.clone()
        other[1:] = 3 * other[1:] + 1
        for i, what in enumerate(("value", "log-det")):
            close(method(x, context)[i][0], method(other, context)[i][0], case.tolerance(1e-9, 1e-3), f"{name}: {what} of row 0")


@law(LAWS)
def _extreme_inputs(case: Case) -> None:
    transform, context = case.build(), case.context()
    for name, method in directions(transform):
        for size in (1e-6, 30.0, 1e4):
            signs = torch.tensor([1.0, -1.0], dtype=case.dtype)[:, None]
            x = (size * signs * torch.ones(2, case.input_dim, dtype=case.dtype)).requires_grad_()
            y, log_det = method(x, context)
            require(bool(torch.isfinite(y).all()), f"{name}: value not finite at inputs of {size:g}")
            require(bool(torch.isfinite(log_det).all()), f"{name}: log-det not finite at inputs of {size:g}")
            tensors = [x, *(p for p in transform.parameters() if p.numel())]
            for gradient in torch.autograd.grad(y.sum() + log_det.sum(), tensors, allow_unused=True):
                good = gradient is None or bool(torch.isfinite(gradient).all())
                require(good, f"{name}: gradient not finite at inputs of {size:g}")


def _same(found: FlowTransform, expected: FlowTransform, case: Case, what: str) -> None:
    x, context = case.inputs(5), case.context(5)
    for one, other in zip(found.forward_and_log_det(x, context), expected.forward_and_log_det(x, context), strict=True):
        require(torch.equal(one, other), f"{what} is not bit-exact")


@law(LAWS)
def _copies_and_pickles(case: Case) -> None:
    transform = case.build()
    used = transform if case.context_dim == 0 else transform.condition(case.context(5))  # type: ignore[arg-type]
    used.inv(used(case.inputs(5).requires_grad_()))  # a full cache, with a graph, must not get in the way
    try:
        copied = copy.deepcopy(transform)
        pickled = pickle.loads(pickle.dumps(transform))  # noqa: S301  (what was just dumped here)
    except Exception as error:
        raise ConformanceError(f"deepcopy or pickle raised {type(error).__name__}: {error}") from error
    _same(copied, transform, case, "deepcopy")
    _same(pickled, transform, case, "pickle")


@law(LAWS)
def _state_dict_holds_everything(case: Case) -> None:
    transform = case.build()
    buffer = io.BytesIO()
    torch.save(transform.state_dict(), buffer)
    buffer.seek(0)
    other = case.fresh(seed_offset=1234)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    _same(other, transform, case, "a fresh transform of another seed after load_state_dict")


@law(LAWS)
def _inverse_owns_the_parameters(case: Case) -> None:
    transform = case.build()
    require(transform.inv.inv is transform, "t.inv.inv must be t")
    mine, its = {id(p) for p in transform.parameters()}, {id(p) for p in transform.inv.parameters()}
    require(mine == its, f"t.inv owns {len(its)} parameters and t {len(mine)}; they must be the same")


@law(LAWS)
def _no_tensor_on_a_default_device(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(4), case.context(4)
    for name, method in directions(transform):
        expected = method(x, context)
        try:
            with torch.device("meta"):
                found = method(x, context)
        except Exception as error:
            raise ConformanceError(f"{name} inside another default device raised {type(error).__name__}: {error}") from error
        for one, other in zip(found, expected, strict=True):
            require(one.device == other.device, f"{name} left a result on {one.device}; a tensor was made without device=")
            close(one, other, 0.0, f"{name} inside another default device")


@law(LAWS)
def _compiles_in_one_graph(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(4), case.context(4)
    if transform.eager_only:
        return
    for name, method in directions(transform):
        torch._dynamo.reset()
        try:
            found = torch.compile(method, fullgraph=True, backend="eager")(x, context)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ConformanceError(f"{name} does not compile in one graph: {type(error).__name__}: {reason}") from error
        finally:
            torch._dynamo.reset()
        for one, other in zip(found, method(x, context), strict=True):
            close(one, other, case.tolerance(1e-9, 1e-3), f"{name} compiled")


@law(LAWS)
def _vmaps(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(4), case.context()
    for name, method in directions(transform):
        try:
            found = torch.func.vmap(lambda row, m=method: m(row, context))(x)
        except ValueError:
            if transform.eager_only:
                continue
            raise
        except Exception as error:
            raise ConformanceError(f"{name} under vmap raised {type(error).__name__}: {error}") from error
        for one, other in zip(found, method(x, context), strict=True):
            close(one, other, case.tolerance(1e-9, 1e-3), f"{name} under vmap")


class _Called(nn.Module):
    """A method of a transform as the call of a module."""

    def __init__(self, transform: FlowTransform, name: str) -> None:
        super().__init__()
        self.transform, self.name = transform, name

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return getattr(self.transform, f"{self.name}_and_log_det")(x, context)  # type: ignore[no-any-return]


@law(LAWS)
def _parameters_may_be_passed(case: Case) -> None:
    transform, other, x, context = case.fresh(), case.build(), case.inputs(4), case.context()
    for name, method in directions(other):
        called = _Called(transform, name)
        state = {key: parameter.detach() for key, parameter in _Called(other, name).named_parameters()}
        try:
            found = torch.func.functional_call(called, state, (x, context))
        except Exception as error:
            raise ConformanceError(f"{name} under functional_call raised {type(error).__name__}: {error}") from error
        for one, expected in zip(found, method(x, context), strict=True):
            close(one, expected, case.tolerance(1e-9, 1e-3), f"{name} with parameters passed by functional_call")


@law(LAWS)
def _cache_is_never_stale(case: Case) -> None:
    transform = case.conditioned()
    z = transform(case.inputs(4)).detach()

    def expect_fresh(what: str) -> None:
        found = transform.inv(z), transform.log_abs_det_jacobian(transform.inv(z), z)
        with torch.random.fork_rng():
            expected = copy.deepcopy(transform).inverse_and_log_det(z)
        close(found[0], expected[0], 0.0, f"cached inverse after {what}")
        close(found[1], -expected[1], case.tolerance(1e-9, 1e-3), f"cached log-det after {what}")

    expect_fresh("the first pass")
    parameters = [p for p in transform.parameters() if p.numel()]
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "SGD": lambda: torch.optim.SGD(parameters, lr=0.01),
        "Adam (foreach)": lambda: torch.optim.Adam(parameters, lr=0.01, foreach=True),
        "Adam (fused)": lambda: torch.optim.Adam(parameters, lr=0.01, fused=True),
    }
    for what, make in makers.items() if parameters else ():
        optimizer = make()
        x, log_det = transform.inverse_and_log_det(z)
        (x.square().sum() - log_det.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        expect_fresh(f"a step of {what}")
    if parameters:
        with torch.no_grad():
            parameters[0].add_(0.05)
        expect_fresh("an in-place change of a parameter")
        state = {name: value + 0.01 if value.is_floating_point() else value for name, value in transform.state_dict().items()}
        transform.load_state_dict(state)
        expect_fresh("load_state_dict")
    transform.train(not transform.training)
    expect_fresh("a change of train and eval mode")
    z = transform(case.inputs(6)).detach()
    expect_fresh("another batch")


@law(LAWS)
def _density_has_gradient_after_sampling(case: Case) -> None:
    transform = case.conditioned()
    if not any(p.numel() for p in transform.parameters()):
        return
    with torch.no_grad():
        y = transform(case.inputs(4))
    x = transform.inv(y)
    total = x.square().sum() + transform.log_abs_det_jacobian(x, y).sum()
    require(total.requires_grad, "a draw made under no_grad, then scored, has a density without gradient")


@law(LAWS)
def _starts_near_the_identity(case: Case) -> None:
    transform = case.fresh()
    if not any(p.numel() for p in transform.parameters()):
        return
    x = case.inputs(16)
    error = (transform.forward_and_log_det(x, case.context())[0] - x).abs().max().item()
    require(error <= 0.1, f"at construction |f(x) - x| reaches {error:.3g}; a learnable transform starts near the identity")
