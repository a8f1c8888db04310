"""The laws of a transform, for whoever writes one to check it: ``check_transform(factory)``, ``check_flow(factory)``."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor, nn

from pyro_flows.distributions import FlowDistribution
from pyro_flows.transforms.core import FlowTransform

Factory = Callable[[int, int], FlowTransform]


class ConformanceError(AssertionError):
    """A transform broke a law; the message begins with the name of the law."""


@dataclass(frozen=True)
class Case:
    """A transform under test.

    Args:
        factory: ``(input_dim, context_dim) -> FlowTransform``.
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        dtype: Type that parameters and inputs are brought to.
        seed: Seed of construction, perturbation and inputs.

    Example:
        >>> from pyro_flows import flows
        >>> Case(flows.affine, 2, 0, torch.float64, 0).build().input_dim
        2
    """

    factory: Factory
    input_dim: int
    context_dim: int
    dtype: torch.dtype
    seed: int

    def fresh(self, seed_offset: int = 0) -> FlowTransform:
        """A new transform as the factory makes it."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + seed_offset)
            return self.factory(self.input_dim, self.context_dim).to(self.dtype)

    def build(self) -> FlowTransform:
        """A new transform whose parameters are moved away from where they start."""
        transform = self.fresh()
        generator = torch.Generator().manual_seed(self.seed + 1)
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(self.dtype)
        return transform

    def inputs(self, *batch: int, scale: float = 1.0) -> Tensor:
        """Points ``(*batch, D)``."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return scale * torch.randn(*batch, self.input_dim, generator=generator, dtype=torch.float64).to(self.dtype)

    def context(self, *batch: int) -> Tensor | None:
        """A context ``(*batch, context_dim)``, or None."""
        if not self.context_dim:
            return None
        generator = torch.Generator().manual_seed(self.seed + 3)
        return torch.randn(*batch, self.context_dim, generator=generator, dtype=torch.float64).to(self.dtype)

    def conditioned(self, *batch: int) -> FlowTransform:
        """A perturbed transform that needs no context."""
        transform, context = self.build(), self.context(*batch)
        return transform if context is None else transform.condition(context)

    def tolerance(self, double: float, single: float) -> float:
        """The tolerance for this case's type, or a hundred times what the transform says of its accuracy."""
        return max(double if self.dtype == torch.float64 else single, 100 * self.accuracy)

    @functools.cached_property
    def accuracy(self) -> float:
        """What the transform says of its accuracy."""
        return self.fresh().accuracy


Law = Callable[[Case], None]
LAWS: dict[str, Law] = {}
FLOW_LAWS: dict[str, Law] = {}


def _law(registry: dict[str, Law]) -> Callable[[Law], Law]:
    def decorate(function: Law) -> Law:
        registry[function.__name__.lstrip("_")] = function
        return function

    return decorate


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ConformanceError(message)


def _close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    _require(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    if not found.numel():
        return
    error = ((found - expected).abs() / (1 + expected.abs())).max().item()
    _require(error <= tolerance, f"{what}: relative error {error:.3g}, allowed {tolerance:.3g}")


def _directions(transform: FlowTransform) -> Iterable[tuple[str, Callable[..., tuple[Tensor, Tensor]]]]:
    yield "forward", transform.forward_and_log_det
    yield "inverse", transform.inverse_and_log_det


# Laws of a transform


@_law(LAWS)
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
            _close(found, expected, tolerance, name)


def _lost_to_rounding(direction: Callable[..., tuple[Tensor, Tensor]], context: Tensor | None, x: Tensor) -> Tensor:
    """By how much a point and one that has the same image to rounding may differ, relative to the point, with a margin."""
    flat = x.detach().double().flatten()
    jacobian = torch.autograd.functional.jacobian(lambda v: direction(v, context)[0].flatten(), x)
    smallest = torch.linalg.svdvals(jacobian.double().reshape(flat.numel(), flat.numel())).min()
    image = direction(x, context)[0].detach().double()
    return 30 * torch.finfo(x.dtype).eps * (1 + image.abs().max()) / smallest / (1 + flat.abs().max())


@_law(LAWS)
def _log_det_is_that_of_autograd(case: Case) -> None:
    transform, context = case.build(), case.context()
    if transform.log_det_kind != "exact":
        return
    for name, method in _directions(transform):
        for x in case.inputs(3):
            jacobian = torch.autograd.functional.jacobian(lambda v, m=method: m(v, context)[0], x)
            log_det = method(x, context)[1]
            _require(log_det.dtype == case.dtype, f"{name} log-det has dtype {log_det.dtype}, expected {case.dtype}")
            _close(log_det, torch.linalg.slogdet(jacobian)[1], case.tolerance(1e-8, 2e-3), f"{name} log-det against autograd")


@_law(LAWS)
def _log_dets_are_opposite(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(16), case.context()
    y, forward = transform.forward_and_log_det(x, context)
    _close(transform.inverse_and_log_det(y, context)[1], -forward, case.tolerance(1e-8, 2e-3), "inverse log-det against -forward")


@_law(LAWS)
def _batch_shapes(case: Case) -> None:
    transform, context = case.build(), case.context()
    for name, method in _directions(transform):
        for batch in ((), (3,), (2, 3), (0,)):
            x = case.inputs(*batch)
            y, log_det = method(x, context)
            _require(y.shape == x.shape, f"{name}: output has shape {tuple(y.shape)} for input {tuple(x.shape)}")
            _require(log_det.shape == batch, f"{name}: log-det has shape {tuple(log_det.shape)} for batch shape {batch}")
            for index in list(torch.ones(batch).nonzero().tolist())[:4]:
                row = method(x[tuple(index)], context)
                _close(y[tuple(index)], row[0], case.tolerance(1e-9, 1e-3), f"{name}: a row of a batch against the row alone")
                _close(log_det[tuple(index)], row[1], case.tolerance(1e-9, 1e-3), f"{name}: log-det of a row of a batch")


@_law(LAWS)
def _context_broadcasts(case: Case) -> None:
    if not case.context_dim:
        return
    transform = case.build()
    for name, method in _directions(transform):
        for batch, context_batch in (((4,), ()), ((4,), (4,)), ((4,), (2, 1)), ((), (3,)), ((4, 1), (3,))):
            x, context = case.inputs(*batch), case.context(*context_batch)
            full = torch.broadcast_shapes(batch, context_batch)
            y, log_det = method(x, context)
            _require(
                y.shape == (*full, case.input_dim) and log_det.shape == full,
                f"{name}: shapes {tuple(y.shape)} and {tuple(log_det.shape)} for batches {batch} and {context_batch}",
            )
            rows, contexts = x.expand(*full, -1), context.expand(*full, -1)  # type: ignore[union-attr]
            for index in torch.ones(full).nonzero().tolist()[::3]:
                row = method(rows[tuple(index)], contexts[tuple(index)])
                _close(y[tuple(index)], row[0], case.tolerance(1e-9, 1e-3), f"{name}: a row against the row with its context alone")
                _close(log_det[tuple(index)], row[1], case.tolerance(1e-9, 1e-3), f"{name}: log-det of a row with its context")
    try:
        transform.forward_and_log_det(case.inputs(2), None)
    except ValueError:
        return
    raise ConformanceError("a conditional transform used without context must raise ValueError")


@_law(LAWS)
def _gradients_reach_everything(case: Case) -> None:
    for direction in ("forward", "inverse"):
        transform = case.build()
        method = dict(_directions(transform))[direction]
        x, context = case.inputs(8).requires_grad_(), case.context(8)
        if context is not None:
            context.requires_grad_()
        y, log_det = method(x, context)
        weights = torch.linspace(1, 2, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)
        total = (weights * y.sin()).sum() + (weights[..., 0] * log_det).sum()
        _require(total.requires_grad, f"{direction}: the result has no gradient")
        total.backward()
        named = [("the input", x), *transform.named_parameters()]
        named += [] if context is None else [("the context", context)]
        for name, tensor in named:
            _require(tensor.grad is not None, f"{direction}: no gradient to {name}")
            gradient = tensor.grad
            _require(bool(torch.isfinite(gradient).all()), f"{direction}: the gradient to {name} is not finite")  # type: ignore[arg-type]
        # With one variable a reflection, for one, has nothing that a context could change.
        for name, tensor in (named[0], *(named[-1:] if context is not None and case.input_dim > 1 else [])):
            _require(float(tensor.grad.abs().max()) > 0, f"{direction}: the gradient to {name} is zero")  # type: ignore[union-attr]


@_law(LAWS)
def _gradients_are_right(case: Case) -> None:
    if case.dtype != torch.float64:
        return
    for direction in ("forward", "inverse"):
        transform, context = case.build(), case.context(3)
        method = dict(_directions(transform))[direction]
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
            _close(
                found,
                expected,
                max(1e-5, 10 * case.accuracy / step),
                f"{direction}: gradient to a parameter of shape {tuple(parameter.shape)}",
            )


@_law(LAWS)
def _score_is_that_of_the_density(case: Case) -> None:
    if case.build().log_det_kind != "exact":
        return
    transform, context = case.build(), case.context(6)
    x = case.inputs(6)
    score = (-x).sin()
    y, log_det, found = transform.forward_with_score(x, score, context)
    expected = transform.forward_and_log_det(x, context)
    _close(y, expected[0], case.tolerance(1e-9, 1e-3), "value beside the score")
    _close(log_det, expected[1], case.tolerance(1e-9, 1e-3), "log-det beside the score")
    _require(found.shape == y.shape, f"the score has shape {tuple(found.shape)}, expected {tuple(y.shape)}")
    _require(not found.requires_grad, "the score must carry no gradient")
    _require(y.requires_grad == expected[0].requires_grad, "the value beside the score lost its gradient")
    at = y.detach().requires_grad_()
    back, log_det_back = transform.inverse_and_log_det(at, context)
    # cos has the gradient -sin, so this is a log-density whose score at x is the one that was given.
    (truth,) = torch.autograd.grad(back.cos().sum() + log_det_back.sum(), at)
    _close(found, truth, case.tolerance(1e-7, 1e-2), "score against autograd of the density")
    far = 1e4 * torch.ones(2, case.input_dim, dtype=case.dtype)
    finite = torch.isfinite(transform.forward_with_score(far, -far, case.context(2))[2]).all()
    _require(bool(finite), "the score is not finite at inputs of 1e4")


@_law(LAWS)
def _rows_are_independent(case: Case) -> None:
    transform, context = case.build(), case.context()
    for name, method in _directions(transform):
        x = case.inputs(4)
        other = x.clone()
        other[1:] = 3 * other[1:] + 1
        for i, what in enumerate(("value", "log-det")):
            _close(method(x, context)[i][0], method(other, context)[i][0], case.tolerance(1e-9, 1e-3), f"{name}: {what} of row 0")


@_law(LAWS)
def _extreme_inputs(case: Case) -> None:
    transform, context = case.build(), case.context()
    for name, method in _directions(transform):
        for size in (1e-6, 30.0, 1e4):
            signs = torch.tensor([1.0, -1.0], dtype=case.dtype)[:, None]
            x = (size * signs * torch.ones(2, case.input_dim, dtype=case.dtype)).requires_grad_()
            y, log_det = method(x, context)
            _require(bool(torch.isfinite(y).all()), f"{name}: value not finite at inputs of {size:g}")
            _require(bool(torch.isfinite(log_det).all()), f"{name}: log-det not finite at inputs of {size:g}")
            tensors = [x, *(p for p in transform.parameters() if p.numel())]
            for gradient in torch.autograd.grad(y.sum() + log_det.sum(), tensors, allow_unused=True):
                good = gradient is None or bool(torch.isfinite(gradient).all())
                _require(good, f"{name}: gradient not finite at inputs of {size:g}")


def _same(found: FlowTransform, expected: FlowTransform, case: Case, what: str) -> None:
    x, context = case.inputs(5), case.context(5)
    for one, other in zip(found.forward_and_log_det(x, context), expected.forward_and_log_det(x, context), strict=True):
        _require(torch.equal(one, other), f"{what} is not bit-exact")


@_law(LAWS)
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


@_law(LAWS)
def _state_dict_holds_everything(case: Case) -> None:
    transform = case.build()
    buffer = io.BytesIO()
    torch.save(transform.state_dict(), buffer)
    buffer.seek(0)
    other = case.fresh(seed_offset=1234)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    _same(other, transform, case, "a fresh transform of another seed after load_state_dict")


@_law(LAWS)
def _inverse_owns_the_parameters(case: Case) -> None:
    transform = case.build()
    _require(transform.inv.inv is transform, "t.inv.inv must be t")
    mine, its = {id(p) for p in transform.parameters()}, {id(p) for p in transform.inv.parameters()}
    _require(mine == its, f"t.inv owns {len(its)} parameters and t {len(mine)}; they must be the same")


@_law(LAWS)
def _no_tensor_on_a_default_device(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(4), case.context(4)
    for name, method in _directions(transform):
        expected = method(x, context)
        try:
            with torch.device("meta"):
                found = method(x, context)
        except Exception as error:
            raise ConformanceError(f"{name} inside another default device raised {type(error).__name__}: {error}") from error
        for one, other in zip(found, expected, strict=True):
            _require(one.device == other.device, f"{name} left a result on {one.device}; a tensor was made without device=")
            _close(one, other, 0.0, f"{name} inside another default device")


@_law(LAWS)
def _compiles_in_one_graph(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(4), case.context(4)
    if transform.eager_only:
        return
    for name, method in _directions(transform):
        torch._dynamo.reset()
        try:
            found = torch.compile(method, fullgraph=True, backend="eager")(x, context)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ConformanceError(f"{name} does not compile in one graph: {type(error).__name__}: {reason}") from error
        finally:
            torch._dynamo.reset()
        for one, other in zip(found, method(x, context), strict=True):
            _close(one, other, case.tolerance(1e-9, 1e-3), f"{name} compiled")


@_law(LAWS)
def _vmaps(case: Case) -> None:
    transform, x, context = case.build(), case.inputs(4), case.context()
    for name, method in _directions(transform):
        try:
            found = torch.func.vmap(lambda row, m=method: m(row, context))(x)
        except ValueError:
            if transform.eager_only:
                continue
            raise
        except Exception as error:
            raise ConformanceError(f"{name} under vmap raised {type(error).__name__}: {error}") from error
        for one, other in zip(found, method(x, context), strict=True):
            _close(one, other, case.tolerance(1e-9, 1e-3), f"{name} under vmap")


class _Called(nn.Module):
    """A method of a transform as the call of a module."""

    def __init__(self, transform: FlowTransform, name: str) -> None:
        super().__init__()
        self.transform, self.name = transform, name

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return getattr(self.transform, f"{self.name}_and_log_det")(x, context)  # type: ignore[no-any-return]


@_law(LAWS)
def _parameters_may_be_passed(case: Case) -> None:
    transform, other, x, context = case.fresh(), case.build(), case.inputs(4), case.context()
    for name, method in _directions(other):
        called = _Called(transform, name)
        state = {key: parameter.detach() for key, parameter in _Called(other, name).named_parameters()}
        try:
            found = torch.func.functional_call(called, state, (x, context))
        except Exception as error:
            raise ConformanceError(f"{name} under functional_call raised {type(error).__name__}: {error}") from error
        for one, expected in zip(found, method(x, context), strict=True):
            _close(one, expected, case.tolerance(1e-9, 1e-3), f"{name} with parameters passed by functional_call")


@_law(LAWS)
def _cache_is_never_stale(case: Case) -> None:
    transform = case.conditioned()
    z = transform(case.inputs(4)).detach()

    def expect_fresh(what: str) -> None:
        found = transform.inv(z), transform.log_abs_det_jacobian(transform.inv(z), z)
        with torch.random.fork_rng():
            expected = copy.deepcopy(transform).inverse_and_log_det(z)
        _close(found[0], expected[0], 0.0, f"cached inverse after {what}")
        _close(found[1], -expected[1], case.tolerance(1e-9, 1e-3), f"cached log-det after {what}")

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


@_law(LAWS)
def _density_has_gradient_after_sampling(case: Case) -> None:
    transform = case.conditioned()
    if not any(p.numel() for p in transform.parameters()):
        return
    with torch.no_grad():
        y = transform(case.inputs(4))
    x = transform.inv(y)
    total = x.square().sum() + transform.log_abs_det_jacobian(x, y).sum()
    _require(total.requires_grad, "a draw made under no_grad, then scored, has a density without gradient")


@_law(LAWS)
def _starts_near_the_identity(case: Case) -> None:
    transform = case.fresh()
    if not any(p.numel() for p in transform.parameters()):
        return
    x = case.inputs(16)
    error = (transform.forward_and_log_det(x, case.context())[0] - x).abs().max().item()
    _require(error <= 0.1, f"at construction |f(x) - x| reaches {error:.3g}; a learnable transform starts near the identity")


# Laws of a flow


@_law(FLOW_LAWS)
def _density_integrates_to_one(case: Case) -> None:
    if case.input_dim > 2 or case.dtype != torch.float64:
        return
    for name, transform in (("flow", case.conditioned()), ("inverse of the flow", case.conditioned().inv)):
        distribution = FlowDistribution(transform)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(case.seed)
            draws = distribution.sample((4000,))
            # Points are dense about the median and sparse in tails, which may be long: y = median + unit sinh(u) for a grid of u.
            quarter, median, three_quarters = torch.quantile(draws, torch.tensor([0.25, 0.5, 0.75], dtype=case.dtype), dim=0)
            unit = 0.5 * (three_quarters - quarter)
            low, high = draws.min(0).values, draws.max(0).values
            ends = torch.stack([1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low])
            first, last = torch.asinh((ends - median) / unit)
            count = 4001 if case.input_dim == 1 else 401
            axes = [torch.linspace(a, b, count, dtype=case.dtype) for a, b in zip(first, last, strict=True)]
            grid = torch.cartesian_prod(*axes).reshape(-1, case.input_dim)
            cell = math.prod(float(u * (axis[1] - axis[0])) for u, axis in zip(unit, axes, strict=True))
            total = (
                sum(
                    float((distribution.log_prob(median + unit * u.sinh()) + u.cosh().log().sum(-1)).exp().sum())
                    for u in grid.split(50_000)
                )
                * cell
            )
        _require(abs(total - 1) < 5e-3, f"the density of the {name} integrates to {total:.5f}")


@_law(FLOW_LAWS)
def _transformed_distribution(case: Case) -> None:
    transform, context = case.build(), case.context(5)
    conditioned = transform if context is None else transform.condition(context)
    loc = torch.zeros(case.input_dim, dtype=case.dtype)
    for module in (torch.distributions, dist):
        normal = torch.distributions.Normal if module is torch.distributions else dist.Normal
        base = torch.distributions.Independent(normal(loc, torch.ones_like(loc)), 1)
        if module is dist:
            base = dist.Normal(loc, torch.ones_like(loc)).to_event(1)
        distribution = module.TransformedDistribution(base, [conditioned])
        expected_batch = (5,) if context is not None else ()
        _require(
            distribution.batch_shape == expected_batch, f"batch shape {tuple(distribution.batch_shape)}, expected {expected_batch}"
        )
        with torch.random.fork_rng():
            torch.manual_seed(case.seed)
            y = distribution.rsample(torch.Size((7,)))
        _require(y.shape == (7, *expected_batch, case.input_dim), f"draws have shape {tuple(y.shape)}")
        x, log_det = transform.inverse_and_log_det(y.detach(), context)
        noise = base.expand(torch.Size(expected_batch)).log_prob(x)
        _close(distribution.log_prob(y), noise + log_det, case.tolerance(1e-8, 1e-3), "log_prob of a TransformedDistribution")
        if context is not None:
            _require(x.reshape(7, 5, -1).std(1).min().item() > 0, "rows of a batched context share one noise")


@_law(FLOW_LAWS)
def _flow_distribution(case: Case) -> None:
    distribution = FlowDistribution(case.conditioned(5))
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        y, log_prob = distribution.rsample_and_log_prob((7,))
    _require(y.dtype == case.dtype, f"draws have dtype {y.dtype}, expected {case.dtype}")
    _close(distribution.log_prob(y.detach()), log_prob, case.tolerance(1e-8, 2e-3), "log_prob against rsample_and_log_prob")
    with torch.random.fork_rng(), torch.device("meta"):
        found = distribution.sample()
    _require(found.device.type == "cpu", f"draws inside another default device are on {found.device}")


@_law(FLOW_LAWS)
def _pyro_module_trains(case: Case) -> None:
    transform = case.build()
    before = [p.detach().clone() for p in transform.parameters()]
    data, context = case.inputs(6), case.context(6)

    def model() -> None:
        pyro.module("flow", transform)
        distribution = FlowDistribution(transform)
        with pyro.plate("data", 6):
            pyro.sample("y", distribution if context is None else distribution.condition(context), obs=data)

    with pyro.get_param_store().scope():
        loss = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
    _require(math.isfinite(loss), f"the loss is {loss}")
    moved = any(not torch.equal(a, b) for a, b in zip(before, transform.parameters(), strict=True))
    _require(moved, "no parameter moved in a step of SVI over pyro.module")


def _normal_model(case: Case) -> Callable[[], None]:
    def model() -> None:
        loc = torch.zeros(case.input_dim, dtype=case.dtype)
        pyro.sample("x", dist.Normal(loc, torch.ones_like(loc)).to_event(1))

    return model


@_law(FLOW_LAWS)
def _auto_normalizing_flow_and_neutra(case: Case) -> None:
    if case.context_dim:
        return
    transform, model = case.build(), _normal_model(case)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(case.seed)
        guide = AutoNormalizingFlow(model, lambda dim: transform)
        loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
        _require(math.isfinite(loss), f"the loss of AutoNormalizingFlow is {loss}")
        neutra = NeuTraReparam(guide)
        trace = poutine.trace(neutra.reparam(model)).get_trace()
        noise = trace.nodes["x_shared_latent"]["value"].detach()
        y, log_det = transform.forward_and_log_det(noise)
        expected = dist.Normal(torch.zeros_like(y), torch.ones_like(y)).to_event(1).log_prob(y) + log_det
        _close(trace.log_prob_sum(), expected, case.tolerance(1e-8, 1e-3), "log-density of NeuTraReparam")


# Entry points


def check_transform(
    factory: Factory,
    *,
    input_dim: int = 2,
    context_dim: int = 0,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64),
    laws: Iterable[str] | None = None,
    seed: int = 0,
) -> None:
    """Check a transform against the laws that every transform keeps.

    Parameters are moved away from where they start first. ``torch.compile`` is run with the backend ``"eager"``, which finds graph
    breaks without compiling code.

    Args:
        factory: ``(input_dim, context_dim) -> FlowTransform``.
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        dtypes: Types to check.
        laws: Names of laws, see ``LAWS``; all if None.
        seed: Seed of everything random.

    Raises:
        ConformanceError: If a law is broken; the message names it.
        ValueError: If a law is unknown.

    Example:
        >>> from pyro_flows.transforms import AffineTril
        >>> check_transform(AffineTril, input_dim=3)
    """
    _check(factory, LAWS, input_dim, context_dim, dtypes, laws, seed)


def check_flow(
    factory: Factory,
    *,
    input_dim: int = 2,
    context_dim: int = 0,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64),
    laws: Iterable[str] | None = None,
    seed: int = 0,
) -> None:
    """Check a flow: the laws of a transform, and those of a flow used in distributions, models and guides.

    Args:
        factory: ``(input_dim, context_dim) -> FlowTransform``.
        input_dim: Number of variables D.
        context_dim: Size of the context; 0 for none.
        dtypes: Types to check.
        laws: Names of laws, see ``LAWS`` and ``FLOW_LAWS``; all if None.
        seed: Seed of everything random.

    Raises:
        ConformanceError: If a law is broken; the message names it.
        ValueError: If a law is unknown.

    Example:
        >>> from pyro_flows import flows
        >>> check_flow(flows.affine, laws=["round_trip", "flow_distribution"])
    """
    _check(factory, {**LAWS, **FLOW_LAWS}, input_dim, context_dim, dtypes, laws, seed)


def _check(
    factory: Factory,
    known: dict[str, Law],
    input_dim: int,
    context_dim: int,
    dtypes: Iterable[torch.dtype],
    laws: Iterable[str] | None,
    seed: int,
) -> None:
    chosen = list(known) if laws is None else list(laws)
    unknown = [law for law in chosen if law not in known]
    if unknown:
        raise ValueError(f"laws {unknown} are unknown; known are {list(known)}")
    for dtype in dtypes:
        case = Case(factory, input_dim, context_dim, dtype, seed)
        for law in chosen:
            try:
                known[law](case)
            except ConformanceError as error:
                raise ConformanceError(f"{law}: {error} (D={input_dim}, context_dim={context_dim}, {dtype})") from error
            except Exception as error:
                message = f"{law}: raised {type(error).__name__}: {error} (D={input_dim}, context_dim={context_dim}, {dtype})"
                raise ConformanceError(message) from error
