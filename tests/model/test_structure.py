"""Reading a model: what is found, what is left alone, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_sample, init_to_value
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.model import read_model


def study(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        k = pyro.sample("k", dist.Categorical(p), infer={"enumerate": "parallel"})
        level = pyro.deterministic("level", mu + k)
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)
    pyro.factor("penalty", -(mu**2))
    pyro.param("loose", torch.tensor(1.0))


def test_a_model_is_read_as_it_is_written() -> None:
    y = torch.zeros(2, 3)
    structure = read_model(study, (y,))
    assert [site.name for site in structure.sites] == ["mu", "p"]
    p = structure.sites[1]
    assert (p.shape, p.unconstrained_shape, p.event_dim, p.batch_dim) == ((2, 3, 4), (2, 3, 3), 1, 2)
    assert p.support is constraints.simplex
    assert set(p.plates) == {"rows", "columns"}
    assert [(site.start, site.stop) for site in structure.sites] == [(0, 1), (1, 19)]
    assert structure.dim == 19
    assert structure.dtype == torch.float32
    assert list(structure.observed) == ["y"]
    assert structure.enumerated == ("k",)
    assert structure.deterministic == ("level",)
    assert structure.param_names == ("loose",)
    assert structure.max_plate_nesting == 2
    assert structure.subsampled == ()
    assert structure.local_sites == ()
    assert structure.named_dims["p"] == ["rows", "columns", "p_dim_2"]


def test_the_type_is_that_of_the_models_own_sites() -> None:
    structure = read_model(lambda: pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)))
    assert structure.dtype == torch.float64


def test_reading_uses_no_random_numbers_of_the_caller_and_is_seen_by_no_handler() -> None:
    before = torch.random.get_rng_state()
    with poutine.trace() as outer:
        read_model(study, (torch.zeros(2, 3),))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(outer.trace.nodes) <= 2  # the input and output of the trace itself


@pytest.mark.parametrize(
    ("support", "batch", "event"),
    [
        (constraints.real, (), ()),
        (constraints.positive, (3,), ()),
        (constraints.unit_interval, (2,), ()),
        (constraints.simplex, (), (3,)),
        (dist.constraints.ordered_vector, (2,), (3,)),
    ],
    ids=str,
)
def test_improper_priors_start_inside_their_support(support: Any, batch: tuple[int, ...], event: tuple[int, ...]) -> None:
    def model() -> None:
        pyro.sample("x", dist.ImproperUniform(support, torch.Size(batch), torch.Size(event)))

    for strategy in (init_to_sample, init_to_value):
        structure = read_model(model, init_loc_fn=strategy)
        value = structure.initial["x"]
        assert value.shape == batch + event
        assert support.check(value).all()


def test_initial_values_are_those_of_the_strategy() -> None:
    structure = read_model(study, (torch.zeros(2, 3),), init_loc_fn=init_to_value(values={"mu": torch.tensor(3.0)}))
    assert structure.initial["mu"] == 3.0


def test_a_model_without_continuous_latents_is_refused() -> None:
    with pytest.raises(ValueError, match="no continuous latent sites"):
        read_model(lambda: pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0)))


def test_a_discrete_latent_that_is_not_enumerated_is_refused_by_name() -> None:
    def model() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"'k' is discrete\. If it is data.*mark it infer=\{'enumerate': 'parallel'\}"):
        read_model(model)


def regression(y: Tensor, mask: Tensor | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)), poutine.mask(mask=torch.tensor(True) if mask is None else mask):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_observed_nan_is_refused_by_name_and_counted() -> None:
    y = torch.tensor([1.0, torch.nan, torch.nan])
    with pytest.raises(ValueError, match="'y' has 2 NaN among 3 values"):
        read_model(regression, (y,))
    with pytest.raises(ValueError, match="'y' has 1 NaN among 3 values"):
        read_model(regression, (y, torch.tensor([True, True, False])))


def test_masked_nan_is_all_right() -> None:
    structure = read_model(regression, (torch.tensor([torch.nan, 1.0, torch.nan]), torch.tensor([False, True, False])))
    assert structure.stand_ins["y"] == 1.0


def test_a_model_that_raises_is_reported_with_its_last_site() -> None:
    def model() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        raise KeyError("lost")

    with pytest.raises(ValueError, match="raised KeyError at or after sample site 'mu': 'lost'") as caught:
        read_model(model)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ValueError, match="before its first sample site"):
        read_model(lambda: torch.zeros(2) @ torch.zeros(3))


def local(size: int | None) -> None:
    with pyro.plate("n", 6, subsample_size=size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(size or 6))


def test_a_latent_in_a_subsampled_plate_is_refused_with_the_guide_to_use() -> None:
    assert read_model(local, (None,)).local_sites == ()
    with pytest.raises(ValueError, match=r"'z' is local to plate 'n', which is subsampled \(2 of 6\).*AutoPlateFlow"):
        read_model(local, (2,))


def test_a_latent_in_a_subsampled_plate_is_read_where_asked_for() -> None:
    structure = read_model(local, (2,), allow_local=True)
    assert [site.name for site in structure.local_sites] == ["z"]
    assert structure.subsampled == ("n",)


def test_latents_of_different_types_are_refused() -> None:
    def model() -> None:
        pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.float32), 1.0))

    with pytest.raises(ValueError, match="different dtypes"):
        read_model(model)


@pytest.mark.parametrize(("first", "second", "change"), [(2, 3, "'x_2' is new"), (3, 2, "'x_2' is not there")])
def test_another_reading_with_other_latents_is_refused_by_name(first: int, second: int, change: str) -> None:
    def model(count: int) -> None:
        for j in range(count):
            pyro.sample(f"x_{j}", dist.Normal(0.0, 1.0))

    read_model(model, (first,)).check_same(read_model(model, (first,)))
    with pytest.raises(ValueError, match=change):
        read_model(model, (first,)).check_same(read_model(model, (second,)))
