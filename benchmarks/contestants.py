"""Flows of ours and of others for density estimation, and the loop that trains all of them alike."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

import pyro_flows as pf
from benchmarks.kept_rows import run_and_keep
from pyro_flows import flows
from pyro_flows.infer.fit_density import data_are_plenty

BATCH = 256
LogProb = Callable[[Tensor], Tensor]


def ours(name: str, dim: int, rows: int) -> tuple[nn.Module, LogProb]:
    """A factory of ours as ``fit_density`` starts it, its direction that scores in one pass."""
    flow = flows.build(name, dim, for_data=True, steep=data_are_plenty(rows, dim))
    flow = flow.inv if flow.cheap_direction == "forward" else flow
    distribution = pf.FlowDistribution(flow)
    return distribution, distribution.log_prob


def zuko(name: str, dim: int) -> tuple[nn.Module, LogProb]:
    """Its NSF or NAF, of the layers that ours have."""
    from zuko import flows as theirs

    flow = (
        theirs.NSF(dim, transforms=4, hidden_features=(64, 64))
        if name == "NSF"
        else theirs.NAF(dim, transforms=3, hidden_features=(64, 64))
    )
    return flow, lambda x: flow().log_prob(x)


def normflows(name: str, dim: int) -> tuple[nn.Module, LogProb]:
    """Its autoregressive splines, or its residual flow, as its examples have them."""
    import normflows as nf

    layers: list[nn.Module] = []
    for _ in range(4 if name == "NSF" else 16):
        if name == "NSF":
            layers += [nf.flows.AutoregressiveRationalQuadraticSpline(dim, 2, 64, tail_bound=5.0), nf.flows.LULinearPermute(dim)]
        else:
            network = nf.nets.LipschitzMLP([dim, 128, 128, 128, dim], init_zeros=True, lipschitz_const=0.9)
            layers += [nf.flows.Residual(network, reduce_memory=True), nf.flows.ActNorm(dim)]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), layers)
    return flow, flow.log_prob


def pyro(_: str, dim: int) -> tuple[nn.Module, LogProb]:
    """Its spline couplings, with permutations between."""
    from benchmarks.libraries import Shape, make

    flow = make("pyro", Shape("spline coupling", dim))
    return flow.module, flow.log_prob


PEERS: dict[str, Callable[[int, int], tuple[nn.Module, LogProb]]] = {
    "zuko NSF": lambda dim, rows: zuko("NSF", dim),
    "zuko NAF": lambda dim, rows: zuko("NAF", dim),
    "normflows NSF": lambda dim, rows: normflows("NSF", dim),
    "normflows Residual": lambda dim, rows: normflows("Residual", dim),
    "Pyro spline coupling": lambda dim, rows: pyro("", dim),
}
#: Take the number of variables and of rows to train on.
CONTESTANTS: dict[str, Callable[[int, int], tuple[nn.Module, LogProb]]] = {
    **{name: lambda dim, rows, name=name: ours(name, dim, rows) for name in flows.names()},  # type: ignore[misc]
    **PEERS,
}


def train(
    module: nn.Module,
    log_prob: LogProb,
    data: Tensor,
    seconds: float,
    lr: float,
    validation: Tensor | None = None,
    batch: int = BATCH,
) -> int:
    """Maximum likelihood until the processor has worked that long; returns the number of steps.

    With rows for validation, these are looked at forty times, and the best state is kept.
    """
    optimiser = torch.optim.Adam(module.parameters(), lr=lr)
    began, steps = time.process_time(), 0
    best, state, looks = math.inf, None, 0
    while (share := (time.process_time() - began) / seconds) < 1:
        if validation is not None and share >= looks / 40:
            looks += 1
            module.eval()
            found = -float(log_prob(validation).detach().mean())
            module.train()
            if found < best:
                best, state = found, copy.deepcopy(module.state_dict())
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, (steps + 1) / 50)
        loss = -log_prob(data[torch.randint(len(data), (batch,))]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        if bool(torch.isfinite(norm)):
            optimiser.step()
        if type(module).__module__.startswith("normflows"):
            import normflows as nf

            nf.utils.update_lipschitz(module, 5)
        steps += 1
    if state is not None:
        module.load_state_dict(state)
    module.eval()
    return steps


def keep_trainings(
    options: argparse.Namespace, fields: Sequence[str], run: Callable[[str, str, int], Mapping[str, object]]
) -> list[dict[str, str]]:
    """The rows of all data sets, contestants and seeds that the command line asks for, made where they are missing."""
    return run_and_keep(
        options.csv,
        fields,
        ("data", "flow", "seed"),
        [(data, name, seed) for seed in range(options.seeds) for data in options.data for name in options.flows],
        run,
        lambda row: f"{row['data']:<14} {row['flow']:<22} {row['steps']:>6} steps {row['nats']:>9.3f} nats",
    )
