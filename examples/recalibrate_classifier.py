"""Recalibrate a classifier's probabilities: handwritten digits, naive Bayes, which is far too sure of itself.

The probabilities are points on a simplex, and calibrations are bijections of it. Temperature, shift and generalised calibration are
fitted by maximum likelihood of the labels; the temperature and the shift also by a posterior, in a Pyro model, whose predictive
probabilities are the mean over draws. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_flows as pf
from pyro_flows.distributions import random_module
from pyro_flows.manifolds import Calibration, GeneralizedCalibration
from pyro_flows.transforms import FlowTransform


def classified() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities and labels of digits that the classifier has not seen: 300 to calibrate by, the others to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.naive_bayes import GaussianNB

    images, labels = load_digits(return_X_y=True)
    x, rest, y, rest_labels = train_test_split(images, labels, train_size=500, random_state=0)
    # Exact zeros are no points inside of a simplex.
    p = torch.as_tensor(GaussianNB(var_smoothing=1e-3).fit(x, y).predict_proba(rest)).clamp(min=1e-12)
    p, label = p / p.sum(-1, keepdim=True), torch.as_tensor(rest_labels).long()
    return p[:300], label[:300], p[300:], label[300:]


def by_likelihood(calibration: FlowTransform, p: Tensor, label: Tensor, steps: int) -> FlowTransform:
    optimiser = torch.optim.Adam(calibration.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -calibration(p).log()[torch.arange(len(p)), label].mean()
        loss.backward()
        optimiser.step()
    return calibration


def model(calibration: FlowTransform, p: Tensor, label: Tensor | None = None) -> None:
    drawn = random_module("calibration", calibration, lambda name, parameter: dist.Normal(torch.zeros_like(parameter), 2.0))
    with pyro.plate("digits", len(p)):
        pyro.sample("label", dist.Categorical(probs=drawn(p)), obs=label)


def scores(q: Tensor, label: Tensor) -> str:
    """Negative log-likelihood, error of calibration over ten bins of confidence, accuracy."""
    nll = -float(q[torch.arange(len(q)), label].log().mean())
    confidence, guess = q.max(-1)
    right = (guess == label).double()
    bins = (confidence * 10).long().clamp(max=9)
    gaps = [float((right[bins == b] - confidence[bins == b]).sum().abs()) for b in range(10)]
    return f"{nll:>8.3f} {sum(gaps) / len(q):>12.3f} {float(right.mean()):>10.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--picture", type=Path, default=Path("recalibrate_classifier.png"), help="where the picture goes")
    arguments = parser.parse_args()
    steps = 50 if arguments.quick else 1000

    pyro.set_rng_seed(0)
    p, label, test, test_label = classified()
    print(f"{'':<28} {'NLL':>8} {'calibration':>12} {'accuracy':>10}")
    print(f"{'as it is':<28} {scores(test, test_label)}")
    calibrations = {
        "temperature": Calibration(10, shift=False),
        "temperature and shift": Calibration(10),
        "generalised": GeneralizedCalibration(10),
    }
    with torch.no_grad():
        for name, calibration in calibrations.items():
            with torch.enable_grad():
                by_likelihood(calibration.double(), p, label, steps)
            print(f"{name:<28} {scores(calibration(test), test_label)}")

    settings = {"max_steps": 20, "guide": pf.AutoFlow(model, flow="affine")} if arguments.quick else {"max_time": 60.0}
    start = Calibration(10).double()
    fit = pf.fit(model, start, p, label, num_particles=32, seed=0, progress=False, **settings)
    draws = fit.sample(200, seed=0)
    mean = torch.zeros_like(test)
    for i in range(200):
        values = {site.removeprefix("calibration."): value[i] for site, value in draws.items()}
        mean += torch.func.functional_call(start, values, (test,)).detach() / 200
    print(f"{'posterior, predictive':<28} {scores(mean, test_label)}")
    print(fit.diagnose(1000))

    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.5, 4.5))
    axis.plot([0, 1], [0, 1], color="0.7")
    for name, q in (("as it is", test), ("posterior, predictive", mean)):
        confidence, guess = q.max(-1)
        bins = (confidence * 10).long().clamp(max=9)
        some = [b for b in range(10) if int((bins == b).sum()) > 5]
        right = [float((guess == test_label)[bins == b].double().mean()) for b in some]
        axis.plot([float(confidence[bins == b].mean()) for b in some], right, "o-", label=name)
    axis.set(xlabel="confidence", ylabel="share that is right")
    axis.legend()
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
