"""The laws of a flow in distributions, models and guides."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam

from pyro_flows.distributions import FlowDistribution

from .case import Case, Law, close, law, require

FLOW_LAWS: dict[str, Law] = {}


@law(FLOW_LAWS)
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
        require(abs(total - 1) < 5e-3, f"the density of the {name} integrates to {total:.5f}")


@law(FLOW_LAWS)
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
        require(
            distribution.batch_shape == expected_batch, f"batch shape {tuple(distribution.batch_shape)}, expected {expected_batch}"
        )
        with torch.random.fork_rng():
            torch.manual_seed(case.seed)
            y = distribution.rsample(torch.Size((7,)))
        require(y.shape == (7, *expected_batch, case.input_dim), f"draws have shape {tuple(y.shape)}")
        x, log_det = transform.inverse_and_log_det(y.detach(), context)
        noise = base.expand(torch.Size(expected_batch)).log_prob(x)
        close(distribution.log_prob(y), noise + log_det, case.tolerance(1e-8, 1e-3), "log_prob of a TransformedDistribution")
        if context is not None:
            require(x.reshape(7, 5, -1).std(1).min().item() > 0, "rows of a batched context share one noise")


@law(FLOW_LAWS)
def _flow_distribution(case: Case) -> None:
    distribution = FlowDistribution(case.conditioned(5))
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        y, log_prob = distribution.rsample_and_log_prob((7,))
    require(y.dtype == case.dtype, f"draws have dtype {y.dtype}, expected {case.dtype}")
    close(distribution.log_prob(y.detach()), log_prob, case.tolerance(1e-8, 2e-3), "log_prob against rsample_and_log_prob")
    with torch.random.fork_rng(), torch.device("meta"):
        found = distribution.sample()
    require(found.device.type == "cpu", f"draws inside another default device are on {found.device}")


@law(FLOW_LAWS)
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
    require(math.isfinite(loss), f"the loss is {loss}")
    moved = any(not torch.equal(a, b) for a, b in zip(before, transform.parameters(), strict=True))
    require(moved, "no parameter moved in a step of SVI over pyro.module")


def _normal_model(case: Case) -> Callable[[], None]:
    def model() -> None:
        loc = torch.zeros(case.input_dim, dtype=case.dtype)
        pyro.sample("x", dist.Normal(loc, torch.ones_like(loc)).to_event(1))

    return model


@law(FLOW_LAWS)
def _auto_normalizing_flow_and_neutra(case: Case) -> None:
    if case.context_dim:
        return
    transform, model = case.build(), _normal_model(case)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(case.seed)
        guide = AutoNormalizingFlow(model, lambda dim: transform)
        loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step()
        require(math.isfinite(loss), f"the loss of AutoNormalizingFlow is {loss}")
        neutra = NeuTraReparam(guide)
        trace = poutine.trace(neutra.reparam(model)).get_trace()
        noise = trace.nodes["x_shared_latent"]["value"].detach()
        y, log_det = transform.forward_and_log_det(noise)
        expected = dist.Normal(torch.zeros_like(y), torch.ones_like(y)).to_event(1).log_prob(y) + log_det
        close(trace.log_prob_sum(), expected, case.tolerance(1e-8, 1e-3), "log-density of NeuTraReparam")
