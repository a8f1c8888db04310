"""Where a fit may start: a point with finite log-density and gradient, or an error that names the culprit."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_mean, init_to_value
from torch.distributions import constraints

from pyro_flows.model import LogJoint, initial_point, read_model


def model() -> None:
    pyro.sample("x", dist.Normal(3.0, 1.0))
    pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))


def test_the_strategy_is_followed_and_improper_priors_start_at_their_centre() -> None:
    point = initial_point(LogJoint(model), init_loc_fn=init_to_mean)
    torch.testing.assert_close(point, torch.tensor([3.0, 0.0]))
    values = {"x": torch.tensor(5.0), "s": torch.tensor(1.0).exp()}
    point = initial_point(LogJoint(model, structure=read_model(model, init_loc_fn=init_to_value(values=values))))
    torch.testing.assert_close(point, torch.tensor([5.0, 1.0]))


def test_a_start_outside_the_support_of_the_data_is_left_for_a_random_one() -> None:
    def narrow() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Uniform(torch.zeros(()), torch.exp(x)), obs=torch.tensor(2.0))

    joint = LogJoint(narrow, structure=read_model(narrow, init_loc_fn=init_to_value(values={"x": torch.tensor(-1.0)})))
    # x > log 2 has probability 0.33 a try: all of 100 fail with probability 10^-17.
    point = initial_point(joint)
    assert torch.isfinite(joint(point[None])).all()


def test_where_nothing_is_finite_the_site_is_named() -> None:
    def impossible() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("fine", dist.Normal(x, 1.0), obs=torch.tensor(1.0))
        pyro.sample("never", dist.Normal(x, 1.0).mask(True), obs=torch.tensor(torch.inf))

    joint = LogJoint(impossible)
    assert any("not finite" in reason for reason in joint.reasons)
    with pytest.raises(ValueError, match=r"no point with a finite log-density.*in 5 tries.*\['never'\]"):
        initial_point(joint, num_tries=5)
