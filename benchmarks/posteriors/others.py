"""Hierarchical, time series, Gaussian process and differential equation."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_flows.data import eight_schools
from pyro_flows.demo import centred, non_centred

from .core import Posterior, data


def arma(y: Tensor) -> None:
    """ARMA(1, 1)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    # e_t = u_t - theta e_{t-1}, summed by doubling: (1 + a S)(1 + a^2 S^2)(1 + a^4 S^4) ... u with the shift S.
    before = torch.cat([mu.unsqueeze(-1), y[:-1].expand(*mu.shape, -1)], -1)
    error, power, shift = y - mu.unsqueeze(-1) - phi.unsqueeze(-1) * before, -theta.unsqueeze(-1), 1
    while shift < len(y):
        error = error + power * torch.nn.functional.pad(error[..., :-shift], (shift, 0))
        power, shift = power * power, 2 * shift
    pyro.factor("likelihood", dist.Normal(0.0, sigma.unsqueeze(-1)).log_prob(error).sum(-1))


def _forward(transitions: Tensor, log_emissions: tuple[Tensor, Tensor]) -> Tensor:
    """Log-likelihood of a Markov model of two states without an initial term; ``(2, 2)`` and two of ``(T,)``.

    In probabilities, with time as the last dimension, a tenth of the cost of sums of logarithms: every step is divided by its
    likelier emission, every product of neighbours by its largest entry.
    """
    largest = torch.maximum(*log_emissions)
    e1, e2 = ((emission - largest).exp() for emission in log_emissions)
    (t11, t12), (t21, t22) = ((row[..., :1], row[..., 1:]) for row in (transitions[..., 0, :], transitions[..., 1, :]))
    steps = torch.stack([t11 * e1[..., 1:], t12 * e2[..., 1:], t21 * e1[..., 1:], t22 * e2[..., 1:]], -2)
    total = largest.sum(-1)
    while steps.shape[-1] > 1:
        even = steps.shape[-1] // 2 * 2
        (a, b, c, d), (e, f, g, h) = steps[..., :even:2].unbind(-2), steps[..., 1::2].unbind(-2)
        product = torch.stack([a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h], -2)
        scale = product.amax(-2).clamp_min(torch.finfo(product.dtype).tiny)  # where it is zero it stays zero
        total = total + scale.log().sum(-1)
        steps = torch.cat([product / scale.unsqueeze(-2), steps[..., even:]], -1)
    a, b, c, d = steps[..., 0].unbind(-1)
    return total + (e1[..., 0] * (a + b) + e2[..., 0] * (c + d)).log()


def _means(name: str, constraint: constraints.Constraint) -> Tensor:
    value = pyro.sample(name, dist.ImproperUniform(constraint, (), (2,)))
    pyro.factor(f"{name}_prior", dist.Normal(value.new_tensor([0.0, 3.0]), 1.0).log_prob(value).sum(-1))
    return value


def _transitions(alpha: Tensor) -> Tensor:
    rows = [pyro.sample(f"theta{k + 1}", dist.Dirichlet(alpha[k])) for k in range(2)]
    return torch.stack(rows, -2)


def hmm_exponential(u: Tensor, v: Tensor, alpha: Tensor) -> None:
    """Two states, exponential emissions."""
    transitions = _transitions(alpha)
    phi, rate = _means("phi", constraints.positive_ordered_vector), _means("lambda", constraints.positive_ordered_vector)
    first, second = (
        dist.Exponential(phi[..., k, None]).log_prob(u) + dist.Exponential(rate[..., k, None]).log_prob(v) for k in range(2)
    )
    pyro.factor("likelihood", _forward(transitions, (first, second)))


def hmm_normal(u: Tensor, v: Tensor, alpha: Tensor, tau: float, rho: float) -> None:
    """Two states, normal emissions of known scales."""
    transitions = _transitions(alpha)
    phi, rate = _means("phi", constraints.ordered_vector), _means("lambda", constraints.ordered_vector)
    first, second = (
        dist.Normal(phi[..., k, None], tau).log_prob(u) + dist.Normal(rate[..., k, None], rho).log_prob(v) for k in range(2)
    )
    pyro.factor("likelihood", _forward(transitions, (first, second)))


def gp_regression(x: Tensor, y: Tensor) -> None:
    """Gaussian process with a squared exponential kernel."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    rho, alpha, sigma = (value[..., None, None] for value in (rho, alpha, sigma))
    kernel = alpha**2 * (-0.5 * ((x[:, None] - x) / rho) ** 2).exp()
    covariance = kernel + sigma * torch.eye(len(x), dtype=x.dtype)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance_matrix=covariance), obs=y)


def one_compartment(times: Tensor, concentration: Tensor, dose: float, volume: float, substeps: int = 1) -> None:
    """Michaelis-Menten elimination with first-order absorption, by steps of Runge and Kutta."""
    k_a, K_m, V_m = (pyro.sample(name, dist.HalfCauchy(1.0)) for name in ("k_a", "K_m", "V_m"))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    edges = _edges(times, substeps)
    grid = torch.cat([edges, 0.5 * (edges[1:] + edges[:-1])]).sort().values
    # What was absorbed is known in closed form; the equation is solved for what was eliminated of it, which is smooth.
    absorbed = (dose / volume * -torch.expm1(-k_a.unsqueeze(-1) * grid)).unbind(-1)
    rate, observed = V_m / volume, set(times.tolist())

    def slope(supplied: Tensor, eliminated: Tensor) -> Tensor:
        left = (supplied - eliminated).clamp_min(0.0)
        return rate * left / (K_m + left)

    eliminated, result = torch.zeros_like(k_a), []
    for step, h in enumerate(edges.diff().tolist()):
        start, middle, end = absorbed[2 * step : 2 * step + 3]
        k1 = slope(start, eliminated)
        k2 = slope(middle, eliminated + 0.5 * h * k1)
        k3 = slope(middle, eliminated + 0.5 * h * k2)
        k4 = slope(end, eliminated + h * k3)
        eliminated = eliminated + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if float(edges[step + 1]) in observed:
            result.append((end - eliminated).clamp_min(1e-12).log())
    with pyro.plate("data", len(times)):
        pyro.sample("C_hat", dist.LogNormal(torch.stack(result, -1), sigma.unsqueeze(-1)), obs=concentration)


def _edges(times: Tensor, substeps: int) -> Tensor:
    """Ends of the steps: ``substeps`` between two times, and geometric ones up to the first, where elimination sets in."""
    first = times[0] * torch.tensor([0.0, 1 / 512, 1 / 64, 1 / 16, 1 / 4], dtype=times.dtype)
    inner = [a + (b - a) * torch.arange(substeps) / substeps for a, b in zip(times[:-1], times[1:], strict=True)]
    return torch.cat([first, *inner, times[-1:]])


def posteriors() -> Iterator[Posterior]:
    """All of them."""
    study, name = eight_schools(), "eight_schools-eight_schools_noncentered"
    sites = {"theta": 8, "mu": None, "tau": None}
    yield Posterior(name, non_centred, (study.y, study.sigma), sites)
    yield Posterior("eight_schools-eight_schools_centered", centred, (study.y, study.sigma), sites, reference=name)
    yield Posterior("arma-arma11", arma, (data("arma")["y"],), dict.fromkeys(("mu", "phi", "theta", "sigma")))
    sites = {"theta1": 2, "theta2": 2, "phi": 2, "lambda": 2}
    d = data("bball_drive_event_0")
    yield Posterior("bball_drive_event_0-hmm_drive_0", hmm_exponential, (d["u"], d["v"], d["alpha"]), sites)
    d = data("bball_drive_event_1")
    args = (d["u"], d["v"], d["alpha"], d["tau"], d["rho"])
    yield Posterior("bball_drive_event_1-hmm_drive_1", hmm_normal, args, sites)
    d = data("gp_pois_regr")
    yield Posterior("gp_pois_regr-gp_regr", gp_regression, (d["x"], d["y"]), dict.fromkeys(("rho", "alpha", "sigma")))
    d = data("one_comp_mm_elim_abs")
    args = (d["times"], d["C_hat"], d["D"], d["V"])
    yield Posterior(
        "one_comp_mm_elim_abs-one_comp_mm_elim_abs", one_compartment, args, dict.fromkeys(("k_a", "K_m", "V_m", "sigma"))
    )
