"""Linear regressions."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .core import Posterior, data


def flat_scale(X: Tensor, y: Tensor) -> None:
    """Flat priors on the coefficients and on the positive scale."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (X.shape[1],)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(beta @ X.mT, sigma), obs=y)


def cauchy_scale(X: Tensor, y: Tensor) -> None:
    """Flat priors on the coefficients, half-Cauchy on the scale."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (X.shape[1],)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(beta @ X.mT, sigma), obs=y)


def kilpisjarvi(x: Tensor, y: Tensor, alpha: tuple[float, float], slope: tuple[float, float]) -> None:
    """One covariate, informative priors."""
    intercept = pyro.sample("alpha", dist.Normal(*alpha))
    beta = pyro.sample("beta", dist.Normal(*slope))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + beta * x, sigma), obs=y)


def blr(X: Tensor, y: Tensor) -> None:
    """Normal priors."""
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(beta @ X.mT, sigma), obs=y)


def diamonds(X: Tensor, y: Tensor) -> None:
    """24 coefficients, Student-t priors on intercept and scale."""
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    # The positive half of t(3, 0, 10), by its density: Pyro has no half Student-t.
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.factor("sigma_prior", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + b @ X.mT, sigma), obs=y)


def _design(*columns: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


def _earnings() -> Iterator[tuple[str, Tensor, Tensor]]:
    d = data("earnings")
    earn, height, male = d["earn"], d["height"], d["male"]
    z = (height - height.mean()) / height.std()
    yield "earn_height", _design(height), earn
    yield "log10earn_height", _design(height), earn.log10()
    yield "logearn_height", _design(height), earn.log()
    yield "logearn_height_male", _design(height, male), earn.log()
    yield "logearn_logheight_male", _design(height.log(), male), earn.log()
    yield "logearn_interaction", _design(height, male, height * male), earn.log()
    yield "logearn_interaction_z", _design(z, male, z * male), earn.log()


def _mesquite() -> Iterator[tuple[str, Tensor, Tensor]]:
    d = data("mesquite")
    d1, d2, canopy, total, density = (d[name] for name in ("diam1", "diam2", "canopy_height", "total_height", "density"))
    weight, group = d["weight"], d["group"]
    volume, area, shape = (d1 * d2 * canopy).log(), (d1 * d2).log(), (d1 / d2).log()
    log = weight.log()
    yield "mesquite", _design(d1, d2, canopy, total, density, group), weight
    yield "logmesquite", _design(d1.log(), d2.log(), canopy.log(), total.log(), density.log(), group), log
    yield "logmesquite_logvolume", _design(volume), log
    yield "logmesquite_logva", _design(volume, area, group), log
    yield "logmesquite_logvas", _design(volume, area, shape, total.log(), density.log(), group), log
    yield "logmesquite_logvash", _design(volume, area, shape, total.log(), group), log


def _kidiq_with_mom_work() -> Iterator[tuple[str, Tensor, Tensor]]:
    d = data("kidiq_with_mom_work")
    score, hs, iq, work = d["kid_score"], d["mom_hs"], d["mom_iq"], d["mom_work"]
    c_hs, c_iq = hs - hs.mean(), iq - iq.mean()
    yield "kidscore_interaction_c", _design(c_hs, c_iq, c_hs * c_iq), score
    c2_hs, c2_iq = hs - 0.5, iq - 100
    yield "kidscore_interaction_c2", _design(c2_hs, c2_iq, c2_hs * c2_iq), score
    z_hs, z_iq = c_hs / (2 * hs.std()), c_iq / (2 * iq.std())
    yield "kidscore_interaction_z", _design(z_hs, z_iq, z_hs * z_iq), score
    yield "kidscore_mom_work", _design(*(work.eq(k).float() for k in (2, 3, 4))), score


def _kidiq() -> Iterator[tuple[str, Tensor, Tensor]]:
    d = data("kidiq")
    yield "kidscore_momhs", _design(d["mom_hs"]), d["kid_score"]
    yield "kidscore_momiq", _design(d["mom_iq"]), d["kid_score"]
    yield "kidscore_momhsiq", _design(d["mom_hs"], d["mom_iq"]), d["kid_score"]


def _nes(year: int) -> tuple[Tensor, Tensor]:
    d = data(f"nes{year}")
    ages = [d["age_discrete"].eq(k).float() for k in (2, 3, 4)]
    return _design(d["real_ideo"], d["race_adj"], *ages, d["educ1"], d["gender"], d["income"]), d["partyid7"]


def posteriors() -> Iterator[Posterior]:
    """Every regression."""
    for source, group in (("earnings", _earnings), ("mesquite", _mesquite), ("kidiq_with_mom_work", _kidiq_with_mom_work)):
        for name, X, y in group():
            yield Posterior(f"{source}-{name}", flat_scale, (X, y), {"beta": X.shape[1], "sigma": None})
    for name, X, y in _kidiq():
        yield Posterior(f"kidiq-{name}", cauchy_scale, (X, y), {"beta": X.shape[1], "sigma": None})
    for year in range(1972, 2001, 4):
        yield Posterior(f"nes{year}-nes", flat_scale, _nes(year), {"beta": 9, "sigma": None})
    d = data("kilpisjarvi_mod")
    args = (d["x"], d["y"], (d["pmualpha"], d["psalpha"]), (float(d["pmubeta"]), d["psbeta"]))
    yield Posterior("kilpisjarvi_mod-kilpisjarvi", kilpisjarvi, args, dict.fromkeys(("alpha", "beta", "sigma")))
    d = data("sblrc")
    yield Posterior("sblrc-blr", blr, (d["X"], d["y"]), {"beta": 5, "sigma": None})
    d = data("diamonds")
    X = d["X"][:, 1:]
    yield Posterior("diamonds-diamonds", diamonds, (X - X.mean(0), d["Y"]), {"b": 24, "Intercept": None, "sigma": None})
