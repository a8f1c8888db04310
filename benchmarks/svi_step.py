"""Time of a training step beside Pyro's own flow guide and zuko's flows in a Pyro guide.

Models: eight schools (centred), radon in Minnesota (varying intercepts), a logistic regression with 50 coefficients. All guides are
six affine couplings of two hidden layers of 64, with 256 draws a step, one thread. ``Pyro`` is ``AutoNormalizingFlow`` in ``SVI``
with ``Trace_ELBO(vectorize_particles=True)``; ``zuko`` the same in a guide by hand; ``ours, SVI`` is ``AutoFlow`` in the same loop,
``ours, joint`` the same with one optimiser for all parameters (``JointOptim``), ``Pyro, joint`` Pyro's guide with it; ``ours, fit``
are steps of ``pf.fit`` (path gradients included), ``ours, compiled`` those with ``compile=True``, whose first seconds are stated
apart. ``Pyro, no flow`` is Pyro's guide without a transform: what model, traces and optimiser take alone. The networks of all have
ours' activation, SiLU. Steps are timed in rounds, contestants by turns, by the time of the processor; ratios are medians over
rounds of the first contestant's time over that of each.

``--elbo STEPS`` measures instead how long each takes, compilation included and by the clock, until the median loss of 50 steps is
that which the first contestant has after so many steps; four times as many are taken at most.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.libraries import use_silu
from benchmarks.posteriors.core import data

PARTICLES, LAYERS, HIDDEN, LR = 256, 6, 64, 3e-3
CONTESTANTS = ("Pyro", "Pyro, no flow", "Pyro, joint", "zuko", "ours, SVI", "ours, joint", "ours, fit", "ours, compiled")
Step = Callable[[], float]
Trajectory = list[tuple[float, float]]


# Models


def eight_schools() -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Centred."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return model, (y, sigma)


def radon() -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Varying intercepts, 919 houses in 85 counties."""
    r = data("radon_mn")
    county, x, y = r["county_idx"].long() - 1, r["floor_measure"].float(), r["log_radon"].float()
    count = int(county.max()) + 1

    def model(county: Tensor, x: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        with pyro.plate("counties", count):
            level = pyro.sample("level", dist.Normal(mean, spread))
        with pyro.plate("houses", len(y)):
            pyro.sample("y", dist.Normal(level[..., county] + slope * x, noise), obs=y)

    return model, (county, x, y)


def logistic() -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """50 coefficients, 500 rows that are simulated."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 50, generator=generator)
    truth = 0.5 * torch.randn(50, generator=generator)
    y = (torch.rand(500, generator=generator) < (x @ truth).sigmoid()).float()

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(50), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            logits = beta @ x.T
            pyro.sample("y", dist.Bernoulli(logits=logits.squeeze(-2) if logits.dim() > 1 else logits), obs=y)

    return model, (x, y)


MODELS = {"eight schools": eight_schools, "radon": radon, "logistic": logistic}


# Contestants: each makes a guide


def _svi(model: Callable[..., Any], guide: Any, args: tuple[Tensor, ...], joint: bool) -> Step:
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    optim = pf.infer.JointOptim(torch.optim.Adam, {"lr": LR, "fused": True}) if joint else pyro.optim.Adam({"lr": LR})
    svi = SVI(model, guide, optim, elbo)
    return lambda: float(svi.step(*args))


def with_pyro(model: Callable[..., Any]) -> Any:
    """``AutoNormalizingFlow``."""

    def transform(dim: int) -> Any:
        flip = torch.arange(dim).flip(0)
        layers = []
        for _ in range(LAYERS):
            layers += [T.affine_coupling(dim, [HIDDEN, HIDDEN]), T.Permute(flip)]
        transform = T.ComposeTransformModule(layers)
        use_silu(transform)
        return transform

    return AutoNormalizingFlow(model, transform)


class Shift(dist.TransformModule):  # type: ignore[misc]
    """The least of transforms."""

    domain = codomain = torch.distributions.constraints.real_vector
    bijective = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(dim))

    def _call(self, x: Tensor) -> Tensor:
        return x + self.shift

    def _inverse(self, y: Tensor) -> Tensor:
        return y - self.shift

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


def without_flow(model: Callable[..., Any]) -> Any:
    """``AutoNormalizingFlow`` of a shift alone, so that there is something to train."""
    return AutoNormalizingFlow(model, lambda dim: T.ComposeTransformModule([Shift(dim)]))


class ZukoGuide(pyro.nn.PyroModule):
    """A flow of zuko over the unconstrained latents, handed to the sites of the model as Pyro's automatic guides do."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = [AutoNormalizingFlow(model, lambda dim: T.ComposeTransformModule([]))]
        self.flow: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from pyro.contrib.zuko import ZukoToPyro
        from zuko.flows.coupling import NICE

        inner = self.inner[0]
        if inner.prototype_trace is None:
            inner._setup_prototype(*args, **kwargs)
        if self.flow is None:
            self.flow = NICE(inner.latent_dim, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN), activation=torch.nn.SiLU)
        pyro.module("zuko", self.flow)
        posterior = ZukoToPyro(self.flow())
        inner.get_posterior = lambda *a, **k: posterior
        return inner(*args, **kwargs)


def with_zuko(model: Callable[..., Any]) -> Any:
    """``NICE`` by ``ZukoToPyro``."""
    return ZukoGuide(model)


def _flow(dim: int, context_dim: int = 0) -> Any:
    return pf.flows.real_nvp(dim, context_dim, num_layers=LAYERS, hidden_dims=(HIDDEN, HIDDEN))


def with_ours(model: Callable[..., Any]) -> Any:
    """``AutoFlow``."""
    return pf.AutoFlow(model, flow=_flow)


MAKE = {
    "Pyro": with_pyro, "Pyro, no flow": without_flow, "Pyro, joint": with_pyro,
    "zuko": with_zuko, "ours, SVI": with_ours, "ours, joint": with_ours
}  # fmt: skip


class FitSteps:
    """Steps of ``pf.fit``, timed by its callback: its time a step is that between two calls."""

    def __init__(self, model: Callable[..., Any], args: tuple[Tensor, ...], compile: bool) -> None:
        self.model, self.args, self.compile = model, args, compile

    def trajectory(self, steps: int) -> Trajectory:
        """Seconds since the start, and loss, of each step."""
        began, found = time.perf_counter(), []
        self._fit(steps, lambda step, loss: found.append((time.perf_counter() - began, loss)))
        return found

    def ms(self, steps: int) -> tuple[float, float]:
        """Milliseconds a step, and seconds before the first."""
        began, first, times = time.perf_counter(), [], []

        def note(step: int, loss: float) -> None:
            first.append(time.perf_counter() - began) if not first else None
            times.append(time.process_time())

        self._fit(steps, note)
        gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
        return 1000 * statistics.median(gaps[len(gaps) // 3 :]), first[0]

    def _fit(self, steps: int, callback: Callable[[int, float], None]) -> None:
        options = {"compile": True} if self.compile else {}
        schedule = pf.infer.Schedule(lr=LR, min_steps=10 * steps, growth=1, alpha=0.0)
        pf.fit(
            self.model, *self.args, guide=_flow, num_particles=PARTICLES, max_steps=steps, schedule=schedule, seed=0,
            progress=False, callback=callback, **options,
        )  # fmt: skip


def measure(name: str, contestants: Sequence[str], rounds: int, steps: int) -> list[str]:
    """Lines of the table for one model."""
    model, args = MODELS[name]()
    ready: dict[str, Step] = {}
    lines, first = [], {}
    for contestant in contestants:
        pyro.clear_param_store()
        if contestant in MAKE:
            torch.manual_seed(0)
            step = _svi(model, MAKE[contestant](model), args, "joint" in contestant)
            store = pyro.get_param_store()
            with store.scope() as state:
                began = time.perf_counter()
                step()
                first[contestant] = time.perf_counter() - began
            ready[contestant] = _scoped(step, store, state)
    times: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for _ in tqdm(range(rounds), desc=name, leave=False, dynamic_ncols=True):
        for contestant in random.sample(list(contestants), len(contestants)):
            if contestant in ready:
                taken = []
                for _ in range(steps):
                    began = time.process_time()
                    ready[contestant]()
                    taken.append(time.process_time() - began)
                times[contestant].append(1000 * statistics.median(taken))
            else:
                ms, before = FitSteps(model, args, "compiled" in contestant).ms(3 * steps)
                times[contestant].append(ms)
                first.setdefault(contestant, before)
    for contestant in contestants:
        ratio = statistics.median(a / b for a, b in zip(times[contestants[0]], times[contestant], strict=True))
        median = statistics.median(times[contestant])
        lines.append(f"{name:<14} {contestant:<15} {median:>8.2f} {ratio:>8.2f} {first[contestant]:>12.1f}")
    return lines


def to_elbo(name: str, contestants: Sequence[str], steps: int) -> list[str]:
    """Lines of the table of times to an ELBO, for one model."""
    model, args = MODELS[name]()
    found: dict[str, Trajectory] = {}
    for i, contestant in enumerate(tqdm(contestants, desc=name, leave=False, dynamic_ncols=True)):
        pyro.clear_param_store()
        count = steps if i == 0 else 4 * steps
        torch.manual_seed(0)
        if contestant in MAKE:
            step, began, taken = _svi(model, MAKE[contestant](model), args, "joint" in contestant), time.perf_counter(), []
            for _ in range(count):
                loss = step()
                taken.append((time.perf_counter() - began, loss))
            found[contestant] = taken
        else:
            found[contestant] = FitSteps(model, args, "compiled" in contestant).trajectory(count)
    target = statistics.median(loss for _, loss in found[contestants[0]][-50:])
    lines = []
    for contestant, taken in found.items():
        windows = range(50, len(taken) + 1)
        reached = (i for i in windows if statistics.median(loss for _, loss in taken[i - 50 : i]) <= target)
        at = next(reached, None)
        words = f"{taken[at - 1][0]:>8.1f} {at:>8}" if at else f"{'—':>8} {'—':>8}"
        lines.append(f"{name:<14} {contestant:<15} {-target:>10.2f} {words}")
    return lines


def _scoped(step: Step, store: Any, state: Any) -> Step:
    """A step with a parameter store of its own."""
    kept = [state]

    def run() -> float:
        with store.scope(kept[0]) as after:
            value = step()
        kept[0] = after
        return value

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--steps", type=int, default=50, help="steps in each round (default 50)")
    parser.add_argument("--elbo", type=int, metavar="STEPS", help="measure times to an ELBO instead")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    random.seed(0)
    lines = []
    if options.elbo is not None:
        for name in options.models:
            lines += to_elbo(name, options.contestants, options.elbo)
        print(f"{'model':<14} {'contestant':<15} {'ELBO':>10} {'seconds':>8} {'steps':>8}")
        print("\n".join(lines))
        return
    for name in options.models:
        lines += measure(name, options.contestants, options.rounds, options.steps)
    print(f"{'model':<14} {'contestant':<15} {'ms/step':>8} {'times':>8} {'first step s':>12}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
