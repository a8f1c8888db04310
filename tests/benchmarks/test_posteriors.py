"""The posteriors of the benchmark against their reference draws.

For a bounded h and draws z of p, E[h'(z) + h(z) d log p / dz] = 0 (Stein's identity), whatever the normaliser: a model whose
density is another one than that of the draws fails. The draws are fixed, so the outcome is too; were they drawn afresh, a
family-wise false alarm would come once in 500 runs.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pyro
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import posteriors  # noqa: E402
from pyro_flows.model import LogJoint, read_model  # noqa: E402

if not posteriors.ROOT.exists():
    pytest.skip(f"the reference draws are not here: {posteriors.ROOT}", allow_module_level=True)

ALL = posteriors.all_posteriors()
#: Its columns are not its latents; the centred form has the same density of theta, mu and tau.
TRANSFORMED = "eight_schools-eight_schools_noncentered"


def worst_score(posterior: posteriors.Posterior) -> float:
    """Largest z-score of the identity over the latents."""
    pyro.clear_param_store()
    log_joint = LogJoint(posterior.model, posterior.args, {}, read_model(posterior.model, posterior.args, {}))
    initial = log_joint.structure.initial
    values = {site: value.to(initial[site].dtype) for site, value in posterior.values().items()}
    z = torch.stack([log_joint.latents.unconstrain({s: v[i] for s, v in values.items()}) for i in range(0, 10_000, 5)])
    z = z.requires_grad_()
    gradient = torch.cat([torch.autograd.grad(log_joint(part).sum(), part)[0] for part in z.split(500)])
    z, gradient = z.detach().double(), gradient.double()
    scale = z.std(0)
    h = torch.tanh((z - z.mean(0)) / scale)
    terms = (1 - h**2) / scale + h * gradient
    terms = terms * scale
    return float((terms.mean(0) / (terms.std(0) / len(z) ** 0.5)).abs().max())


@pytest.mark.parametrize("name", sorted(set(ALL) - {TRANSFORMED}))
def test_the_model_has_the_density_of_the_reference_draws(name: str) -> None:
    # About 250 latents in all: 4.5 sd each, two-sided, is 7e-6 * 250 < 0.002.
    assert worst_score(ALL[name]) < 4.5


def test_another_density_is_seen() -> None:
    posterior = ALL["kidiq-kidscore_momiq"]

    def wider(*args: object) -> None:
        with pyro.poutine.scale(scale=0.8):
            posterior.model(*args)

    assert worst_score(dataclasses.replace(posterior, model=wider)) > 4.5
