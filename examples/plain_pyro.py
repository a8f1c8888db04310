"""The flow guide in a training loop of plain Pyro (SVI, Trace_ELBO, Adam, Predictive), nothing else of this package.

The model is the eight-schools study in its non-centred form.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from tqdm import trange

import pyro_flows as pf
from pyro_flows.demo import non_centred


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default 1000)")
    parser.add_argument("--flow", default="nsf_coupling", help="any name that `python -m pyro_flows list` shows")
    parser.add_argument("--picture", type=Path, default=Path("plain_pyro.png"), help="where the picture goes")
    arguments = parser.parse_args()
    steps = 20 if arguments.quick else arguments.steps

    pyro.set_rng_seed(0)
    y, sigma, _ = pf.data.eight_schools()
    guide = pf.AutoFlow(non_centred, flow=arguments.flow)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(non_centred, guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
    for step in (bar := trange(steps, desc="training", dynamic_ncols=True)):
        loss = svi.step(y, sigma)
        if step % max(1, steps // 10) == 0:
            bar.write(f"step {step:5d}  loss {loss:8.3f}")

    with torch.no_grad():
        draws = Predictive(non_centred, guide=guide, num_samples=1000, parallel=True)(y, sigma)
    for site in ("mu", "tau"):
        print(f"{site}: mean {draws[site].mean():.2f}, sd {draws[site].std():.2f}")

    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 4))
    axis.scatter(draws["mu"], draws["tau"].log(), s=4)
    axis.set(xlabel="mu", ylabel="log tau", title="draws of the guide")
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=120)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
