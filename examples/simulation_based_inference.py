"""Inference where there is a simulator but no likelihood: a plain Python function with a prior, a guide trained on its runs.

The simulator is an epidemic in a town of 1,000 people, of which some are infected each day at random. Its data are the numbers of
new cases in ten weeks; its latents the rates of infection and of recovery. Once trained, the guide gives the posterior of any such
epidemic at once, and warns where data are unlike all simulations.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_flows as pf


def prior() -> None:
    pyro.sample("infection", dist.Uniform(0.1, 1.0))
    pyro.sample("recovery", dist.LogNormal(-1.5, 0.3))


def epidemic(latents: dict[str, Tensor]) -> np.ndarray:
    """Logarithms of new cases per week, plus one."""
    susceptible, infected, people = 990, 10, 1000
    cases = np.zeros(10)
    for day in range(70):
        new = np.random.binomial(susceptible, 1 - np.exp(-float(latents["infection"]) * infected / people))
        recovered = np.random.binomial(infected, 1 - np.exp(-float(latents["recovery"])))
        susceptible, infected = susceptible - new, infected + new - recovered
        cases[day // 7] += new
    return np.log1p(cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few simulations and epochs only")
    parser.add_argument("--simulations", type=int, default=5000, help="runs of the simulator (default 5000)")
    parser.add_argument("--workers", type=int, default=1, help="processes that run it (default 1)")
    parser.add_argument("--picture", type=Path, default=Path("simulation_based_inference.png"), help="where the picture goes")
    arguments = parser.parse_args()
    count, epochs = (200, 2) if arguments.quick else (arguments.simulations, 60)

    model = pf.SimulatorModel(prior, epidemic)
    simulations = pf.simulate(model, num_simulations=count, num_workers=arguments.workers, seed=0)
    guide = pf.AmortizedFlow(model)
    fit = pf.fit_amortized(guide, simulations=simulations, max_epochs=epochs, seed=0)
    print(f"trained on {len(simulations)} simulations in {fit.seconds:.0f} s; {simulations.num_failed} failed")

    truth = {"infection": torch.tensor(0.5), "recovery": torch.tensor(0.2)}
    np.random.seed(1)
    observed = torch.as_tensor(epidemic(truth), dtype=torch.float32)
    draws = guide.sample(observed, 4000, seed=0)
    for name, value in truth.items():
        low, high = draws[name].quantile(torch.tensor([0.05, 0.95])).tolist()
        print(
            f"{name:<10} truth {float(value):.2f}, posterior mean {float(draws[name].mean()):.2f}, 90 % in ({low:.2f}, {high:.2f})"
        )
    print(f"p-value of these data among the simulations: {float(guide.p_value(observed)):.3f}")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guide.sample(torch.full((10,), 9.0), 10)  # more cases each week than there are people
    print(f"data that cannot be: {caught[0].message if caught else 'no warning'}")

    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
    axes[0].plot(np.expm1(observed), "o-")
    axes[0].set(xlabel="week", ylabel="new cases", title="the epidemic that was seen")
    axes[1].scatter(draws["infection"], draws["recovery"], s=3, alpha=0.4, label="posterior")
    axes[1].plot(*(float(value) for value in truth.values()), "r*", ms=14, label="truth")
    axes[1].set(xlabel="infection", ylabel="recovery", title="its rates")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
