"""Evidence of conjugate models: its bounds, its standard error over seeds, and Bayes factors of nested linear models.

Six models whose evidence and posterior are known in closed form. ``bounds``: ELBO and EUBO, the latter from exact posterior
draws, on either side of the evidence, in standard errors. ``seeds``: how often the estimate of the log evidence is within three
of its own standard errors, over seeds of its draws; where guides are exact, weights are constant and errors those of rounding,
which below 1e-9 nats do not count. ``factors``: Savage-Dickey ratios and ratios of evidences of linear models with one to eight
more coefficients, against the exact factor.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyro_flows as pf
from pyro_flows.studies import bayes_factor, savage_dickey

DOUBLE = torch.float64
#: Nats.
ROUNDING = 1e-9
Draws = dict[str, Tensor]
Case = tuple[Callable[..., Any], tuple[Tensor, ...], float, Callable[[int], Draws]]


def normal_mean() -> Case:
    """Normal data of known sd, normal prior of the mean."""
    y = 1.5 + torch.randn(20, dtype=DOUBLE)

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 2.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    covariance = torch.eye(20, dtype=DOUBLE) + 4.0
    precision = 20 + 0.25
    posterior = dist.Normal(y.sum() / precision, precision**-0.5)
    exact = float(dist.MultivariateNormal(torch.zeros(20, dtype=DOUBLE), covariance).log_prob(y))
    return model, (y,), exact, lambda n: {"mean": posterior.sample((n,))}


def linear_regression() -> Case:
    """Five coefficients, known noise."""
    x = torch.randn(40, 5, dtype=DOUBLE)
    y = x @ torch.randn(5, dtype=DOUBLE) + 0.5 * torch.randn(40, dtype=DOUBLE)

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(x.new_zeros(5), 2.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)

    exact = float(dist.MultivariateNormal(y.new_zeros(40), 4 * x @ x.T + 0.25 * torch.eye(40, dtype=DOUBLE)).log_prob(y))
    precision = x.T @ x / 0.25 + torch.eye(5, dtype=DOUBLE) / 4
    posterior = dist.MultivariateNormal(torch.linalg.solve(precision, x.T @ y / 0.25), precision_matrix=precision)
    return model, (x, y), exact, lambda n: {"beta": posterior.sample((n,))}


def beta_binomial() -> Case:
    """A probability."""
    k = torch.tensor(13.0, dtype=DOUBLE)

    def model(k: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(k.new_tensor(2.0), k.new_tensor(3.0)))
        pyro.sample("k", dist.Binomial(20, p), obs=k)

    exact = math.log(math.comb(20, 13)) + log_beta(15, 10) - log_beta(2, 3)
    return model, (k,), exact, lambda n: {"p": dist.Beta(torch.tensor(15.0, dtype=DOUBLE), 10.0).sample((n,))}


def gamma_poisson() -> Case:
    """A rate."""
    y = torch.tensor([3.0, 5.0, 2.0, 4.0, 6.0], dtype=DOUBLE)

    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(y.new_tensor(2.0), y.new_tensor(1.0)))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    total = float(y.sum())
    exact = math.lgamma(2 + total) - math.lgamma(2) - (2 + total) * math.log(6) - float(torch.lgamma(y + 1).sum())
    return model, (y,), exact, lambda n: {"rate": dist.Gamma(torch.tensor(2 + total, dtype=DOUBLE), 6.0).sample((n,))}


def dirichlet_categorical() -> Case:
    """Four probabilities."""
    y = torch.tensor([0, 1, 1, 2, 2, 2, 3, 1, 2, 2, 0, 1])
    alpha = torch.tensor([1.0, 2.0, 3.0, 1.5], dtype=DOUBLE)

    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Dirichlet(alpha))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Categorical(p), obs=y)

    after = alpha + torch.bincount(y, minlength=4)
    parts = torch.lgamma(after).sum() - torch.lgamma(after.sum()) - torch.lgamma(alpha).sum() + torch.lgamma(alpha.sum())
    return model, (y,), float(parts), lambda n: {"p": dist.Dirichlet(after).sample((n,))}


def normal_inverse_gamma() -> Case:
    """Unknown mean and variance."""
    y = 2 + 1.5 * torch.randn(15, dtype=DOUBLE)

    def model(y: Tensor) -> None:
        variance = pyro.sample("variance", dist.InverseGamma(y.new_tensor(3.0), y.new_tensor(4.0)))
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), (2 * variance).sqrt()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, variance.sqrt()), obs=y)

    count, kappa = len(y), 0.5
    kappa_n, mean_n, a_n = kappa + count, float(y.sum()) / (kappa + count), 3.0 + count / 2
    b_n = 4.0 + 0.5 * float((y - y.mean()).square().sum()) + 0.5 * kappa * count * float(y.mean()) ** 2 / kappa_n
    exact = math.lgamma(a_n) - math.lgamma(3.0) + 3 * math.log(4.0) - a_n * math.log(b_n)
    exact += 0.5 * math.log(kappa / kappa_n) - count / 2 * math.log(2 * math.pi)

    def draws(n: int) -> Draws:
        variance = dist.InverseGamma(torch.tensor(a_n, dtype=DOUBLE), torch.tensor(b_n, dtype=DOUBLE)).sample((n,))
        return {"variance": variance, "mean": mean_n + (variance / kappa_n).sqrt() * torch.randn(n, dtype=DOUBLE)}

    return model, (y,), exact, draws


CASES = (normal_mean, linear_regression, beta_binomial, gamma_poisson, dirichlet_categorical, normal_inverse_gamma)


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def judge(make: Callable[[], Case], seeds: int, settings: dict[str, Any]) -> str:
    """Bounds, and how often the evidence is right over seeds."""
    torch.manual_seed(0)
    model, args, exact, draws = make()
    fit = pf.fit(model, *args, seed=0, progress=False, **settings)
    found = fit.diagnose(posterior=draws(10_000))
    below, above = (exact - found.elbo) / (found.elbo_mcse + ROUNDING), (found.eubo - exact) / (found.eubo_mcse + ROUNDING)
    off = [fit.diagnose(seed=seed) for seed in range(1, seeds + 1)]
    right = sum(abs(one.log_evidence - exact) <= 3 * one.log_evidence_mcse + ROUNDING for one in off)
    return (
        f"{make.__name__:<22} exact {exact:>9.4f}  ELBO {found.elbo:>9.4f} ({below:+.1f} se below)  EUBO {found.eubo:>9.4f} "
        f"({above:+.1f} se above)  evidence {found.log_evidence:>9.4f} ± {found.log_evidence_mcse:.4f}, within 3 se in {right} of "
        f"{seeds} seeds"
    )


# Nested linear models


def linear(x: Tensor, y: Tensor, extra: int) -> None:
    """Two coefficients, and some more."""
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    mean = x[:, :2] @ beta
    if extra:
        more = pyro.sample("more", dist.Normal(x.new_zeros(extra), 2.0).to_event(1))
        mean = mean + x[:, 2 : 2 + extra] @ more
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 0.7), obs=y)


def factor(extra: int, size: float, settings: dict[str, Any]) -> str:
    """One row: the exact factor of the small over the large model, and both estimates."""
    torch.manual_seed(extra)
    x = torch.randn(60, 10, dtype=DOUBLE)
    y = x @ torch.cat([torch.ones(2), torch.full((8,), size)]).to(DOUBLE) + 0.7 * torch.randn(60, dtype=DOUBLE)

    def evidence(columns: Tensor) -> float:
        covariance = 4 * columns @ columns.T + 0.49 * torch.eye(60, dtype=DOUBLE)
        return float(dist.MultivariateNormal(y.new_zeros(60), covariance).log_prob(y))

    exact = evidence(x[:, :2]) - evidence(x[:, : 2 + extra])
    large = pf.fit(linear, x, y, extra, seed=0, progress=False, **settings)
    small = pf.fit(linear, x, y, 0, seed=0, progress=False, **settings)
    ratio = savage_dickey(large, {"more": 0.0}, progress=False, **settings)
    both = bayes_factor(small, large)
    errors = ratio.log_value - exact, both.log_value - exact
    return (
        f"{extra:>2} more, effects {size}: exact {exact:>9.3f}  Savage-Dickey {errors[0]:+.4f}  ratio of evidences {errors[1]:+.4f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("bounds", "factors"), default=["bounds", "factors"])
    parser.add_argument("--seeds", type=int, default=100, help="seeds of the evidence (default 100)")
    parser.add_argument("--guide", help="a flow by name; by default what pf.fit chooses")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = {"guide": options.guide} if options.guide else {}
    if "bounds" in options.parts:
        for make in tqdm(CASES, desc="models", dynamic_ncols=True):
            tqdm.write(judge(make, options.seeds, settings))
    if "factors" in options.parts:
        for extra in tqdm((1, 2, 4, 8), desc="factors", dynamic_ncols=True):
            for size in (0.0, 0.4):
                tqdm.write(factor(extra, size, settings))


if __name__ == "__main__":
    main()
