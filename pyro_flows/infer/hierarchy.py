"""Which latents are effects whose prior has other latents as its location and scale."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.model import LatentSite, LogJoint
from pyro_flows.transforms import NonCentring

from .gaussian import Density

#: Share of the variance of location and log-scale that a linear form may leave unexplained.
UNEXPLAINED = 0.01
#: Effect of one standard deviation of a latent on a location in its scales, or on a log-scale, below which there is none.
NEGLIGIBLE = 1e-3
#: Levels of a hierarchy up to which it is standardised: each costs a pass.
MOST_LEVELS = 16
#: Latents up to which the linear forms are looked for.
MOST_LATENTS = 1000


def read_hierarchy(log_joint: LogJoint, loc: Tensor, scale: Tensor) -> tuple[NonCentring, list[str]] | None:
    r"""The map that takes effects out of the scales that their priors give them.

    An effect is a latent whose prior is of a location-scale family, or log-normal, with a scale that depends on other latents.
    Location and log-scale are taken as linear in the unconstrained latents, which they mostly are (:math:`\mu`, :math:`\log \tau`,
    :math:`-\frac12 \log` of a precision); sites for which they are not are left as they are. The map is a bijection however well
    the linear form fits.

    Args:
        log_joint: The model.
        loc: Where the posterior is, in unconstrained latents, ``(D,)``.
        scale: About how wide it is there, ``(D,)``.

    Returns:
        The map and the names of the sites that it standardises; None if there are none, with enumerated sites or minibatches, with
        more than 1,000 latents, or more than 16 levels.

    Example:
        >>> def model():
        ...     tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        ...     pyro.sample("theta", dist.Normal(torch.zeros(3), tau).to_event(1))
        >>> read_hierarchy(LogJoint(model), torch.zeros(4), torch.ones(4))[1]
        ['theta']
    """
    structure, dim = log_joint.structure, log_joint.structure.dim
    if structure.enumerated or structure.subsampled or not 1 < dim <= MOST_LATENTS:
        return None
    generator = torch.Generator(device="cpu").manual_seed(0)
    noise = torch.randn(2 * dim + 50, dim, generator=generator, dtype=torch.float64, device="cpu").to(loc)
    with torch.no_grad():
        priors = log_joint.locations_and_log_scales(loc + scale * noise)
    found = [site for site in structure.sites if site.name in priors]
    is_effect = torch.zeros(dim, dtype=torch.bool, device=loc.device)
    weights = {name: loc.new_zeros(dim, dim) for name in ("loc", "log_scale")}
    biases = {name: loc.new_zeros(dim) for name in ("loc", "log_scale")}
    taken = []
    for site in found:
        forms = _linear_forms(site, noise, priors[site.name])
        if forms is None:
            continue
        for name, (bias, slopes) in zip(("loc", "log_scale"), forms, strict=True):
            rows = slice(site.start, site.stop)
            weight = slopes / scale[: site.start]
            weights[name][rows, : site.start] = weight
            biases[name][rows] = bias - weight @ loc[: site.start]
            is_effect[rows] = True
        taken.append(site.name)
    if not taken:
        return None
    precision, centre = _data(log_joint, loc, scale, found, generator)
    usable = is_effect & torch.isfinite(precision) & torch.isfinite(centre)
    zero = torch.zeros_like(loc)
    precision, centre = torch.where(usable, precision, zero), torch.where(usable, centre, zero)
    layer = NonCentring(biases["loc"], weights["loc"], biases["log_scale"], weights["log_scale"], precision, centre)
    return (layer, taken) if layer.depth <= MOST_LEVELS else None


def _linear_forms(site: LatentSite, noise: Tensor, prior: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Bias and slopes by the earlier latents of location and log-scale; None if the scale is fixed or they are not linear."""
    location, log_scale = (part.reshape(len(prior), -1) for part in prior.unbind(-1))
    if site.start == 0 or not bool(torch.isfinite(location).all() & torch.isfinite(log_scale).all()):
        return None
    if float(log_scale.std(0).max()) < NEGLIGIBLE:
        return None
    forms = []
    for values, unit in ((location, log_scale.mean(0).exp()), (log_scale, torch.ones_like(log_scale[0]))):
        design = torch.cat([torch.ones_like(noise[:, :1]), noise[:, : site.start]], 1).double().cpu()
        solution = torch.linalg.lstsq(design, values.double().cpu()).solution
        left = (values.double().cpu() - design @ solution).square().mean(0)
        if bool((left > UNEXPLAINED * values.double().cpu().var(0) + (NEGLIGIBLE * unit.double().cpu()).square()).any()):
            return None
        solution = solution.to(values)
        slopes = solution[1:].mT
        forms.append((solution[0], torch.where(slopes.abs() > NEGLIGIBLE * unit[:, None], slopes, torch.zeros_like(slopes))))
    return forms[0], forms[1]


def _data(
    log_joint: LogJoint, loc: Tensor, scale: Tensor, sites: list[LatentSite], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Precision of what all but the prior says of each effect, and where that has its centre, both ``(D,)``.

    From the gradient and its central differences at five points, less those of a normal prior.
    """
    dim = len(loc)
    density = Density(log_joint, loc)
    noise = torch.randn(5, dim, generator=generator, dtype=torch.float64, device="cpu")
    precisions, centres = [], []
    for point in loc.double().cpu() + scale.double().cpu() * noise:
        priors = log_joint.locations_and_log_scales(point[None].to(loc))
        prior_loc, width = point.clone(), torch.ones_like(point)
        for site in sites:
            flat = priors[site.name][0].reshape(-1, 2).double().cpu()
            prior_loc[site.start : site.stop], width[site.start : site.stop] = flat[:, 0], flat[:, 1].exp()
        step = 0.1 * torch.minimum(width, scale.double().cpu())
        _, gradient = density.with_gradient(torch.cat([point + step.diag(), point - step.diag()]))
        above, below = gradient[:dim].diagonal(), gradient[dim:].diagonal()
        precision = (below - above) / (2 * step) - width**-2
        # What is smaller is rounding, and no data.
        precision = torch.where(precision > NEGLIGIBLE * width**-2, precision, torch.zeros_like(precision))
        pull = 0.5 * (above + below) + (point - prior_loc) * width**-2
        precisions.append(precision)
        centres.append(point + pull / precision.clamp_min(NEGLIGIBLE * width**-2))
    return torch.stack(precisions).median(0).values.to(loc), torch.stack(centres).median(0).values.to(loc)
