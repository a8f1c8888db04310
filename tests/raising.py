"""A model that raises at some latents."""

from __future__ import annotations

import pyro
import pyro.distributions as dist


def raises_above(limit, error=ValueError):
    """x ~ N(0, 1), y ~ N(x, 1), whose solver does not converge where x is above the limit."""

    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if float(x) > limit:
            raise error("the solver did not converge")
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    return model
