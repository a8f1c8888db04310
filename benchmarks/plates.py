"""Guides of plates on minibatches: local latents against exact posteriors and long NUTS runs.

``normal 20`` (minibatches of 5) and ``normal 10000`` (of 100) have known posteriors. ``radon_all``: 12,573 houses in 386 counties;
given the five globals the county effects are exactly normal, so the reference is NUTS over these five, with the effects integrated
out. ``science_irt`` (392 persons, 7 items) and ``election88`` (11,566 voters, 51 states) are compared with NUTS on a part of the
data, on which a guide is fitted as well; all voters have no reference. Errors are in reference sd over all local latents: the mean
of them, the 99th percentile and the worst; ``sd err`` is the worst relative error of an sd. ``AutoNormal`` is Pyro's, on the same
minibatches for the same number of steps.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from benchmarks.posteriors.core import data

FIELDS = "task seed steps ms_step mean p99 worst sd_err correlation elbo elbo_normal khat ess verdict".split()
HEADER = (
    f"{'task':<24} {'s':>2} {'steps':>6} {'ms/step':>8} {'mean':>6} {'p99':>6} {'worst':>6} {'sd err':>6} {'corr':>6} "
    f"{'ELBO':>11} {'AutoNormal':>11} {'k-hat':>6} {'ess/S':>6}  verdict"
)
Reference = tuple[Tensor, Tensor]  # means and sds of all local latents


@dataclass
class Task:
    """A model, its minibatches and all its data, the context of its plates, and what to compare draws with.

    Args:
        model: The model.
        full: Arguments for all the data.
        minibatches: Arguments of the steps.
        context: Of the guide.
        local: The local latents ``(S, K)`` of draws by site.
        reference: Computes means and sds of these; None where there is no reference.
        correlate: Two sites, or entries of sites, whose correlation is reported.
        options: Of ``fit``.
        flow: Of the guide.
    """

    model: Callable[..., Any]
    full: tuple[Any, ...]
    minibatches: Any
    context: dict[Any, Any]
    local: Callable[[dict[str, Tensor]], Tensor]
    reference: Callable[[], Reference] | None
    correlate: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    flow: Any = "nsf_coupling"


class Rows:
    """Rows of tensors in random minibatches, with their indices; a ``DataLoader`` of batches would do the same, more slowly."""

    def __init__(self, batch: int, *tensors: Tensor) -> None:
        self.batch, self.tensors = batch, tensors

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.batch)

    def __iter__(self) -> Any:
        for indices in torch.randperm(len(self.tensors[0])).split(self.batch):
            yield indices, *(tensor[indices] for tensor in self.tensors)


# Normal: known posterior


def normal(count: int, batch: int, amortised: bool) -> Task:
    noise = 0.5
    generator = torch.Generator().manual_seed(0)
    y = 0.7 + torch.randn(count, generator=generator) + noise * torch.randn(count, generator=generator)

    def model(indices: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", count, subsample=indices):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, noise), obs=y)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = pf.nn.MLP(1, 8, (32,))

        def forward(self, _: Tensor, y: Tensor) -> Tensor:
            return self.net(y[:, None])  # type: ignore[no-any-return]

    def reference() -> Reference:
        precision, weight = 1 + count / (1 + noise**2), 1 / (1 + noise**2)
        mean = y.double().sum() / (1 + noise**2) / precision
        local = (1 - weight) * mean + weight * y.double()
        sd = (noise**2 * weight + (1 - weight) ** 2 / precision) ** 0.5
        return local, torch.full_like(local, sd)

    context: Any = Encoder() if amortised else 4
    return Task(model, (torch.arange(count), y), Rows(batch, y), {"data": context}, lambda draws: draws["z"], reference)


# Radon


def _radon_prior() -> tuple[list[Tensor], list[Tensor], Tensor]:
    means = [pyro.sample(name, dist.Normal(0.0, 10.0)) for name in ("m_a", "m_b")]
    scales = [pyro.sample(name, dist.HalfNormal(1.0)) for name in ("s_a", "s_b")]
    return means, scales, pyro.sample("s_y", dist.HalfNormal(1.0))


def _radon_data() -> tuple[Tensor, Tensor, Tensor]:
    r = data("radon_all")
    return r["county_idx"].long() - 1, r["floor_measure"].float(), r["log_radon"].float()


def _radon_reference() -> Reference:
    """NUTS over the five globals with the effects integrated out, whose means and covariances are then known exactly."""
    county, x, y = (tensor.double() if tensor.is_floating_point() else tensor for tensor in _radon_data())
    design = torch.stack([torch.ones_like(x), x], -1)

    def by_county(values: Tensor) -> Tensor:
        return torch.zeros(386, *values.shape[1:], dtype=values.dtype).index_add(0, county, values)

    xx, xy = by_county(design[:, :, None] * design[:, None, :]), by_county(design * y[:, None])
    yy, count = by_county(y**2), by_county(torch.ones_like(y))

    def conditional(m: Tensor, s: Tensor, s_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        precision = xx / s_y**2 + torch.diag_embed(s**-2)
        linear = xy / s_y**2 + m / s**2
        factor = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(linear[..., None], factor)[..., 0]
        evidence = (
            0.5 * (linear * mean).sum(-1)
            - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            - 0.5 * (yy / s_y**2 + ((m / s) ** 2).sum(-1))
            - s.log().sum(-1)
            - count * s_y.log()
        )
        return mean, torch.cholesky_inverse(factor), evidence

    def marginal() -> None:
        one = torch.ones(2, dtype=torch.float64)
        m = pyro.sample("m", dist.Normal(0.0, 10.0 * one).to_event(1))
        s = pyro.sample("s", dist.HalfNormal(one).to_event(1))
        s_y = pyro.sample("s_y", dist.HalfNormal(one[0]))
        pyro.factor("houses", conditional(m, s, s_y)[2].sum())

    torch.manual_seed(0)
    chain = MCMC(NUTS(marginal), num_samples=2000, warmup_steps=500, disable_progbar=True)
    chain.run()
    draws = chain.get_samples()
    means, covariances = zip(
        *[conditional(m, s, s_y)[:2] for m, s, s_y in zip(draws["m"], draws["s"], draws["s_y"], strict=True)], strict=True
    )
    mean, within = torch.stack(means), torch.stack(covariances).diagonal(dim1=-2, dim2=-1).mean(0)
    return mean.mean(0).reshape(-1), (within + mean.var(0)).sqrt().reshape(-1)


def radon() -> Task:
    """Minibatches of 512 houses; a learned row for each county."""
    county, x, y = _radon_data()

    def model(county: Tensor, x: Tensor, y: Tensor) -> None:
        means, scales, noise = _radon_prior()
        with pyro.plate("counties", 386):
            a, b = (pyro.sample(n, dist.Normal(m, s)) for n, m, s in zip("ab", means, scales, strict=True))
        with pyro.plate("houses", 12_573, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(a[..., county] + b[..., county] * x, noise), obs=y)

    return Task(
        model,
        (county, x, y),
        _Without(Rows(512, county, x, y)),
        {"counties": 8},
        lambda draws: torch.stack([draws["a"], draws["b"]], -1).flatten(1),
        _radon_reference,
        lambda draws: (draws["a"][:, 0], draws["b"][:, 0]),
    )


class _Without:
    """Minibatches without their indices."""

    def __init__(self, batches: Rows) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for _, *rest in self.batches:
            yield tuple(rest)


class CountyEncoder(nn.Module):
    """What a county's houses say of its line: their number, moments, and the least-squares line shrunk to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pf.nn.MLP(10, 12, (64, 64))

    def forward(self, indices: Tensor, x: Tensor, y: Tensor, present: Tensor) -> Tensor:
        count = present.sum(-1, keepdim=True).float().clamp_min(1)
        x, y = x * present, y * present
        sx, sy = x.sum(-1, keepdim=True), y.sum(-1, keepdim=True)
        sxx, sxy = (x * x).sum(-1, keepdim=True), (x * y).sum(-1, keepdim=True)
        mean, centred = sy / (count + 5), sxx - sx**2 / count
        slope = (sxy - sx * sy / count) / (centred + 5)
        level = (sy - slope * sx) / (count + 5)
        rows = [mean, slope, level, count.log(), count / (count + 5), sx / count, centred.log1p(), sxx / (sxx + 5), sxy / (sxx + 5)]
        rows.append((sy - mean * count) / count.sqrt())
        features = torch.cat(rows, -1)
        return torch.cat([features, self.net(features)], -1)


def radon_encoder() -> Task:
    """Minibatches of counties with all their houses, padded; an encoder makes a row of the houses of a county."""
    county, x, y = _radon_data()
    houses = [torch.nonzero(county == c)[:, 0] for c in range(386)]
    most = max(map(len, houses))

    def padded(values: Tensor) -> Tensor:
        return torch.stack([torch.nn.functional.pad(values[i], (0, most - len(i))) for i in houses])

    present = padded(torch.ones(len(y))) > 0

    def model(indices: Tensor, x: Tensor, y: Tensor, present: Tensor) -> None:
        means, scales, noise = _radon_prior()
        with pyro.plate("counties", 386, subsample=indices, dim=-2):
            a, b = (pyro.sample(n, dist.Normal(m, s)) for n, m, s in zip("ab", means, scales, strict=True))
            with pyro.plate("houses", y.shape[-1], dim=-1), pyro.poutine.mask(mask=present):
                pyro.sample("y", dist.Normal(a + b * x, noise), obs=y)

    tensors = padded(x), padded(y), present
    return Task(
        model,
        (torch.arange(386), *tensors),
        Rows(16, *tensors),  # about 512 houses
        {"counties": CountyEncoder()},
        lambda draws: torch.cat([draws["a"], draws["b"]], -1).flatten(1),
        _radon_reference,
        lambda draws: (draws["a"][:, 0, 0], draws["b"][:, 0, 0]),
    )


# Models without a known posterior: NUTS on a part


def _by_nuts(
    model: Callable[..., Any], args: tuple[Any, ...], local: Callable[[dict[str, Tensor]], Tensor], count: int
) -> Reference:
    torch.manual_seed(0)
    chain = MCMC(NUTS(model, jit_compile=False), num_samples=count, warmup_steps=400, num_chains=1, disable_progbar=True)
    chain.run(*args)
    draws = local(chain.get_samples()).double()
    return draws.mean(0), draws.std(0)


def _unknown(local: Tensor) -> Reference:
    return torch.full_like(local[0], torch.nan), torch.full_like(local[0], torch.nan)


class OrderedNormal(dist.TorchDistribution):  # type: ignore[misc]
    """Independent centred normals ``(K)``, in ascending order."""

    arg_constraints = {"scale": dist.constraints.positive}
    support = dist.constraints.ordered_vector
    has_rsample = True

    def __init__(self, scale: Tensor, validate_args: bool | None = None) -> None:
        self.scale = scale
        super().__init__(scale.shape[:-1], scale.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OrderedNormal:
        return OrderedNormal(self.scale.expand(*batch_shape, *self.event_shape), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return (torch.randn(*sample_shape, *self.batch_shape, *self.event_shape) * self.scale).sort(-1)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(0.0, self.scale).log_prob(value).sum(-1) + torch.lgamma(torch.tensor(self.event_shape[0] + 1.0))


def science_irt(persons: int, nuts: int) -> Task:
    """Graded response: ordered thresholds N(0, 3), discrimination LogNormal(0, 0.5), ability N(0, 1)."""
    y = data("science_irt")["y"].long().reshape(392, 7)[:persons]

    def model(y: Tensor) -> None:
        with pyro.plate("items", 7, dim=-1):
            slope = pyro.sample("slope", dist.LogNormal(0.0, 0.5))
            threshold = pyro.sample("threshold", OrderedNormal(torch.full((3,), 3.0)))
        with pyro.plate("persons", len(y), dim=-2):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
            with pyro.plate("answers", 7, dim=-1):
                above = (slope[..., None] * (ability[..., None] - threshold)).sigmoid()
                edges = torch.cat([torch.ones_like(above[..., :1]), above, torch.zeros_like(above[..., :1])], -1)
                pyro.sample("y", dist.Categorical(probs=edges[..., :-1] - edges[..., 1:] + 1e-9), obs=y)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = pf.nn.MLP(28, 8, (64,))

        def forward(self, y: Tensor) -> Tensor:
            hot = nn.functional.one_hot(y, 4).float().flatten(1)
            return torch.cat([y.float().mean(-1, keepdim=True), self.net(hot)], -1)

    def local(draws: dict[str, Tensor]) -> Tensor:
        return draws["ability"].flatten(1)

    return Task(
        model, (y,), [(y,)], {"persons": Encoder()}, local, lambda: _by_nuts(model, (y,), local, nuts),
        lambda draws: (draws["ability"].flatten(1).mean(1), draws["threshold"][..., 0].flatten(1).mean(1)),
    )  # fmt: skip


def election88(voters: int, batch: int, nuts: int | None) -> Task:
    """Votes by state, region, age, education: state effects are local, all others global. NUTS draws make a reference."""
    e = data("election88")
    columns = {name: e[name][:voters] for name in ("age", "edu", "age_edu", "region_full", "state")}
    age, edu, both, region, state = (column.long() - 1 for column in columns.values())
    black, female, previous, y = (e[name][:voters].float() for name in ("black", "female", "v_prev_full", "y"))
    whole = len(y)

    def model(age: Any, edu: Any, both: Any, region: Any, state: Any, black: Any, female: Any, previous: Any, y: Any) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(5), 100.0).to_event(1))
        effects = {}
        for name, size in (("age", 4), ("edu", 4), ("age_edu", 16), ("region", 5)):
            scale = pyro.sample(f"s_{name}", dist.Uniform(0.0, 100.0))
            effects[name] = scale[..., None] * pyro.sample(f"z_{name}", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        scale = pyro.sample("s_state", dist.Uniform(0.0, 100.0))
        with pyro.plate("states", 51):
            effects["state"] = pyro.sample("a_state", dist.Normal(0.0, scale))
        base, of_black, of_female, of_previous, of_both = b.unbind(-1)
        level = base + of_black * black + of_female * female + of_both * black * female + of_previous * previous
        for name, index in (("age", age), ("edu", edu), ("age_edu", both), ("region", region)):
            of_voters = effects[name][..., index]
            level = level + (of_voters.squeeze(-2) if of_voters.dim() > 1 else of_voters)  # (draws, 1, voters) in a plate of draws
        with pyro.plate("voters", whole, subsample_size=len(y)):
            pyro.sample("y", dist.Bernoulli(logits=level + effects["state"][..., state]), obs=y)

    args = (age, edu, both, region, state, black, female, previous, y)

    def local(draws: dict[str, Tensor]) -> Tensor:
        return draws["a_state"].flatten(1)

    return Task(
        model, args, _Without(Rows(batch, *args)), {"states": 6}, local,
        None if nuts is None else lambda: _by_nuts(model, args, local, nuts),
    )  # fmt: skip


def tasks(nuts: int) -> dict[str, Callable[[], Task]]:
    """All, by name."""
    return {
        "normal 20, embedding": lambda: normal(20, 5, False),
        "normal 20, encoder": lambda: normal(20, 5, True),
        "normal 10000, embedding": lambda: normal(10_000, 100, False),
        "normal 10000, encoder": lambda: normal(10_000, 100, True),
        "radon_all, embedding": radon,
        "radon_all, encoder": radon_encoder,
        "science_irt": lambda: science_irt(392, nuts),
        "science_irt, 100": lambda: science_irt(100, nuts),
        "election88": lambda: election88(11_566, 512, None),
        "election88, 2000": lambda: election88(2000, 512, nuts),
    }


def autonormal(task: Task, steps: int) -> float:
    """ELBO of Pyro's mean field on all the data."""
    pyro.clear_param_store()
    guide = AutoNormal(task.model)
    optim = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(task.model, guide, optim, Trace_ELBO())
    done = 0
    with tqdm(total=steps, desc="AutoNormal", dynamic_ncols=True, leave=False) as bar:
        while done < steps:
            for args in task.minibatches:
                svi.step(*args)
                done += 1
                bar.update()
                if done == steps:
                    break
    with torch.no_grad():
        return -sum(Trace_ELBO().loss(task.model, guide, *task.full) for _ in range(200)) / 200


def run(name: str, task: Task, seed: int, max_steps: int, references: dict[str, Reference], compare: bool) -> dict[str, Any]:
    """``fit`` with defaults, and the comparison."""
    pyro.clear_param_store()
    guide = pf.AutoPlateFlow(task.model, task.context, flow=task.flow)
    fit = pf.fit(task.model, *task.full, guide=guide, minibatches=task.minibatches, seed=seed, max_steps=max_steps, **task.options)
    diagnosis = fit.diagnose(2000)
    draws = guide.sample(4000, *task.full)
    local = task.local(draws).double()
    key = name.split(",")[0] if name.startswith("radon") else name
    if key not in references:
        references[key] = task.reference() if task.reference is not None else _unknown(local)
    mean, sd = references[key]
    error = ((local.mean(0) - mean) / sd).abs()
    correlation = float(torch.corrcoef(torch.stack(task.correlate(draws)))[0, 1]) if task.correlate else float("nan")
    fixed = not name.startswith("normal") and compare and "encoder" not in name
    return {
        "task": name, "seed": seed, "steps": fit.record["steps"], "ms_step": 1000 * fit.record["seconds"] / fit.record["steps"],
        "mean": float(error.mean()), "p99": float(error.quantile(0.99)), "worst": float(error.max()),
        "sd_err": float((local.std(0) / sd - 1).abs().max()), "correlation": correlation, "elbo": diagnosis.elbo,
        "elbo_normal": autonormal(task, max(10_000, fit.record["steps"])) if fixed else float("nan"),
        "khat": diagnosis.khat, "ess": diagnosis.ess_fraction, "verdict": diagnosis.verdict,
    }  # fmt: skip


def show(row: dict[str, Any]) -> str:
    """A row of the table."""
    figures = " ".join(
        f"{float(row[name]):{width}.{digits}f}"
        for name, width, digits in (
            ("ms_step", 8, 1), ("mean", 6, 3), ("p99", 6, 3), ("worst", 6, 3), ("sd_err", 6, 3), ("correlation", 6, 2),
            ("elbo", 11, 2), ("elbo_normal", 11, 2), ("khat", 6, 2), ("ess", 6, 3),
        )
    )  # fmt: skip
    return f"{row['task']:<24} {row['seed']:>2} {row['steps']:>6} {figures}  {row['verdict']}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--only", default="", help="tasks whose name begins with this")
    parser.add_argument("--max-steps", type=int, default=20_000, help="steps at most (default 20,000)")
    parser.add_argument("--nuts", type=int, default=1000, help="NUTS draws of a reference, after 400 of warm-up (default 1,000)")
    parser.add_argument("--no-compare", action="store_true", help="leave AutoNormal out")
    parser.add_argument("--csv", type=Path, default=Path("plates.csv"), help="where rows are kept (default plates.csv)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    finished = {(row["task"], row["seed"]) for row in done}
    chosen = {name: task for name, task in tasks(options.nuts).items() if name.startswith(options.only)}
    references: dict[str, Reference] = {}
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        for seed, name in tqdm([(s, n) for s in range(options.seeds) for n in chosen], desc="tasks", dynamic_ncols=True):
            if (name, str(seed)) in finished:
                continue
            row = run(name, chosen[name](), seed, options.max_steps, references, not options.no_compare)
            writer.writerow(row)
            file.flush()
            tqdm.write(show(row))
    print(HEADER)
    for row in csv.DictReader(options.csv.open()):
        print(show(row))


if __name__ == "__main__":
    main()
