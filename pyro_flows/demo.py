"""The eight-schools study from data to a posterior one can judge: what ``python -m pyro_flows demo`` runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from .data import EightSchools, eight_schools

if TYPE_CHECKING:
    from .diagnostics import Diagnosis
    from .infer import Fit

__all__ = ["centred", "non_centred", "run_demo"]

QUICK_STEPS = 20


def centred(y: Tensor, sigma: Tensor) -> None:
    r"""Eight schools as it is usually written, :math:`\theta_j \sim N(\mu, \tau)`: a funnel, hard for a Gaussian guide.

    Args:
        y: Measured effects, shape ``(J,)``.
        sigma: Their standard errors, shape ``(J,)``.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y: Tensor, sigma: Tensor) -> None:
    r"""The same posterior in other coordinates, :math:`\theta_j = \mu + \tau z_j` with :math:`z_j \sim N(0, 1)`.

    Args:
        y: Measured effects, shape ``(J,)``.
        sigma: Their standard errors, shape ``(J,)``.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def run_demo(out: Path, *, seed: int = 0, quick: bool = False, progress: bool = True) -> list[Path]:
    """Fit both forms of the eight-schools study with default settings, print what came out, and write files.

    Args:
        out: Folder for ``posterior.nc`` (non-centred), ``posterior_centred.nc`` and ``posterior.png``; made if missing.
        seed: Seed of every fit.
        quick: Take a few steps only, to show that it runs.
        progress: Show progress bars.

    Returns:
        The paths of the files written.
    """
    from .infer import fit

    out.mkdir(parents=True, exist_ok=True)
    study = eight_schools()
    settings: dict[str, Any] = {"seed": seed, "progress": progress}
    if quick:
        settings["max_steps"] = QUICK_STEPS

    fits: dict[str, Fit] = {}
    diagnoses: dict[str, Diagnosis] = {}
    files = []
    for title, model, name in (
        ("Eight schools, non-centred", non_centred, "posterior.nc"),
        ("Eight schools, centred", centred, "posterior_centred.nc"),
    ):
        print(f"\n{title}\n{'=' * len(title)}")
        start = time.perf_counter()
        fits[title] = fit(model, study.y, study.sigma, **settings)
        print(f"fitted in {time.perf_counter() - start:.1f} s\n")
        diagnoses[title] = fits[title].diagnose()
        files.append(_report(fits[title], diagnoses[title], study, out / name))

    print("\nA Gaussian guide on the centred form, for comparison\n" + "=" * 52)
    gaussian = fit(centred, study.y, study.sigma, guide="affine", non_centred=False, **settings)
    diagnoses["Gaussian"] = gaussian.diagnose()
    print(diagnoses["Gaussian"])

    flow = "Eight schools, centred"
    panels = {
        f"Gaussian guide: verdict {diagnoses['Gaussian'].verdict}": gaussian,
        f"flow guide: verdict {diagnoses[flow].verdict}": fits[flow],
    }
    files.append(_picture(panels, fits["Eight schools, non-centred"], out / "posterior.png", seed))
    print("\nwrote " + "\n      ".join(str(path) for path in files))
    return files


def _report(fit: Fit, diagnosis: Diagnosis, study: EightSchools, path: Path) -> Path:
    """Print the summary and the diagnosis of a fit, and write its posterior to the path."""
    from .diagnostics import summary, to_netcdf

    posterior = fit.to_arviz(resample="psis", coords={"school": list(study.school)})
    print(summary(posterior, var_names=["mu", "tau", "theta"]))
    print()
    print(diagnosis)
    return to_netcdf(posterior, path)


def _picture(fits: dict[str, Fit], reference: Fit, path: Path, seed: int) -> Path:
    """Draw log tau against the effect in school A, one panel a fit, with contours of the reference over each."""
    from .diagnostics.plots import plot_pairs

    draws = {title: _pair(fit.sample(4000, seed=seed)) for title, fit in fits.items()}
    plot_pairs(
        draws,
        reference=_pair(reference.resample(4000, seed=seed)),
        xlabel="effect in school A, points",
        ylabel="log tau",
        path=path,
    )
    return path


def _pair(draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return draws["theta"][..., 0], draws["tau"].log()
