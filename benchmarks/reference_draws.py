"""Make ``benchmarks/reference``: long NUTS runs of the hierarchical posteriors by numpyro, thinned to 1,000 draws each.

numpyro is not needed otherwise: run this in an environment of its own (``pip install numpyro arviz``). Densities as in
``MODELS.md`` beside the data; samplers may use another parametrisation of the same posterior where it mixes better.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")

import arviz as az
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp
from numpyro.infer import MCMC, NUTS
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data" / "posteriordb" / "data"
TARGET = Path(__file__).resolve().parent / "reference"
IMPROPER = dist.ImproperUniform(dist.constraints.positive, (), ())


def data(name: str) -> dict[str, Any]:
    """A data set of posteriordb."""
    with zipfile.ZipFile(ROOT / f"{name}.json.zip") as archive:
        return {key: np.asarray(value) for key, value in json.loads(archive.read(archive.namelist()[0])).items()}


def radon(flat: bool) -> None:
    """Non-centred varying intercepts and slopes; the centred form has the same posterior."""
    d = data("radon_mn")
    m_a, m_b = (numpyro.sample(name, dist.Normal(0, 10)) for name in ("m_a", "m_b"))
    s_a, s_b, s_y = (numpyro.sample(name, IMPROPER if flat else dist.HalfNormal(1)) for name in ("s_a", "s_b", "s_y"))
    z_a, z_b = (numpyro.sample(name, dist.Normal(0, 1).expand((85,)).to_event(1)) for name in ("z_a", "z_b"))
    a, b = (numpyro.deterministic(*pair) for pair in (("a", m_a + s_a * z_a), ("b", m_b + s_b * z_b)))
    county = d["county_idx"] - 1
    numpyro.sample("y", dist.Normal(a[county] + b[county] * d["floor_measure"], s_y), obs=d["log_radon"])


def irt_2pl() -> None:
    """Two-parameter item response."""
    y = data("irt_2pl")["y"]
    s_th, s_a, s_b = (numpyro.sample(name, dist.HalfCauchy(2)) for name in ("s_th", "s_a", "s_b"))
    m_b = numpyro.sample("m_b", dist.Normal(0, 5))
    th = numpyro.sample("th", dist.Normal(0, s_th).expand((100,)).to_event(1))
    a = numpyro.sample("a", dist.LogNormal(0, s_a).expand((20,)).to_event(1))
    b = numpyro.sample("b", dist.Normal(m_b, s_b).expand((20,)).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=a[:, None] * (th - b[:, None])), obs=y)


def seeds() -> None:
    """Random effects of plates; drawn non-centred."""
    d = data("seeds_data")
    coefficients = [numpyro.sample(name, dist.Normal(0, 1000)) for name in ("a0", "a1", "a2", "a12")]
    # tau is Gamma(0.001, 0.001), whose density overflows at zero.
    log_tau = numpyro.sample("log_tau", dist.ImproperUniform(dist.constraints.real, (), ()))
    tau = numpyro.deterministic("tau", jnp.exp(log_tau))
    numpyro.factor("prior", 0.001 * log_tau - 0.001 * tau)
    b = numpyro.deterministic("b", numpyro.sample("z", dist.Normal(0, 1).expand((21,)).to_event(1)) * jnp.exp(-0.5 * log_tau))
    columns = (1.0, d["x1"], d["x2"], d["x1"] * d["x2"])
    logits = sum(c * x for c, x in zip(coefficients, columns, strict=True)) + b
    numpyro.sample("n", dist.Binomial(d["N"], logits=logits), obs=d["n"])


def rats() -> None:
    """Growth curves with flat scales."""
    d = data("rats_data")
    m_al, m_be = (numpyro.sample(name, dist.Normal(0, 100)) for name in ("m_al", "m_be"))
    s_al, s_be, s_y = (numpyro.sample(name, IMPROPER) for name in ("s_al", "s_be", "s_y"))
    al = numpyro.sample("al", dist.Normal(m_al, s_al).expand((30,)).to_event(1))
    be = numpyro.sample("be", dist.Normal(m_be, s_be).expand((30,)).to_event(1))
    rat = d["rat"] - 1
    numpyro.sample("y", dist.Normal(al[rat] + be[rat] * (d["x"] - d["xbar"]), s_y), obs=d["y"])


MODELS = {
    "radon": lambda: radon(False),
    "radon_flat": lambda: radon(True),
    "irt_2pl": irt_2pl,
    "seeds": seeds,
    "rats": rats,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="posteriors whose name contains this")
    parser.add_argument("--draws", type=int, default=10_000, help="draws of each of the four chains (default 10000)")
    options = parser.parse_args()
    TARGET.mkdir(exist_ok=True)
    lines = []
    for name in tqdm([name for name in MODELS if options.only in name], desc="posteriors", dynamic_ncols=True):
        began = time.perf_counter()
        kernel = NUTS(MODELS[name], target_accept_prob=0.95, init_strategy=numpyro.infer.init_to_uniform())
        mcmc = MCMC(kernel, num_warmup=2000, num_samples=options.draws, num_chains=4, chain_method="sequential", progress_bar=False)
        mcmc.run(jax.random.PRNGKey(0), extra_fields=("diverging",))
        draws = {key: np.asarray(value) for key, value in mcmc.get_samples(group_by_chain=True).items()}
        summary = az.summary(az.from_dict(posterior=draws), round_to="none")
        every = 4 * options.draws // 1000
        thin = {key: value.reshape(-1, *value.shape[2:])[::every].astype(np.float32) for key, value in draws.items()}
        moments = {}
        for key, value in draws.items():
            moments[f"mean:{key}"], moments[f"sd:{key}"] = value.mean((0, 1)), value.std((0, 1))
        np.savez_compressed(TARGET / f"{name}.npz", **thin, **moments)
        divergences = int(np.asarray(mcmc.get_extra_fields()["diverging"]).sum())
        noise = float((summary["mcse_mean"] / summary["sd"]).max())
        lines.append(
            f"{name:<12} R-hat {summary['r_hat'].max():.4f}  least bulk ESS {summary['ess_bulk'].min():7.0f}  divergences "
            f"{divergences:3d}  noise of a mean {noise:.4f} sd, of an sd about {noise / math.sqrt(2):.4f}  "
            f"{time.perf_counter() - began:.0f} s"
        )
        tqdm.write(lines[-1])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
