"""The flat vector and the values that it stands for are one to one, with the right Jacobian."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch

from pyro_flows.model import FlatLatents, LogJoint, read_model


def many_supports() -> None:
    f = torch.zeros((), dtype=torch.float64)
    pyro.sample("real", dist.Normal(f, 1.0))
    pyro.sample("positive", dist.Gamma(f + 2, 1.0).expand([2]).to_event(1))
    pyro.sample("between", dist.Uniform(f - 1, f + 3))
    with pyro.plate("n", 2):
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
    pyro.sample("angle", dist.VonMises(f, 1.0))


def test_round_trip_for_any_batch_shape() -> None:
    latents = FlatLatents(read_model(many_supports))
    for batch in ((), (3,), (2, 3)):
        z = torch.randn(*batch, latents.structure.dim, dtype=torch.float64)
        values, log_det = latents.constrain(z)
        assert log_det.shape == batch
        assert values["simplex"].shape == (*batch, 2, 3)
        torch.testing.assert_close(latents.unconstrain(values), z)


def test_vmap_gives_what_a_batch_gives() -> None:
    latents = FlatLatents(read_model(many_supports))
    z = torch.randn(5, latents.structure.dim, dtype=torch.float64)
    values, log_det = latents.constrain(z)
    mapped, mapped_log_det = torch.func.vmap(latents.constrain)(z)
    torch.testing.assert_close(mapped, values)
    torch.testing.assert_close(mapped_log_det, log_det)
    torch.testing.assert_close(torch.func.vmap(latents.unconstrain)(values), z)


def test_log_det_is_that_of_autograds_jacobian() -> None:
    latents = FlatLatents(read_model(many_supports))
    z = torch.randn(latents.structure.dim, dtype=torch.float64)

    def free_coordinates(z: torch.Tensor) -> torch.Tensor:
        values = latents.constrain(z)[0]
        values["simplex"] = values["simplex"][..., :-1]
        return torch.cat([value.reshape(-1) for value in values.values()])

    jacobian = torch.autograd.functional.jacobian(free_coordinates, z)
    torch.testing.assert_close(latents.constrain(z)[1], torch.linalg.slogdet(jacobian)[1])


def test_a_von_mises_latent_is_proper_on_its_circle() -> None:
    def model() -> None:
        pyro.sample("angle", dist.VonMises(torch.tensor(0.5, dtype=torch.float64), 2.0))

    joint = LogJoint(model)
    z = torch.linspace(-40.0, 40.0, 20001, dtype=torch.float64)[:, None]
    assert (joint.constrained(z)["angle"].abs() <= math.pi).all()
    mass = torch.trapezoid(joint(z).exp(), z[:, 0])
    torch.testing.assert_close(mass, torch.ones((), dtype=torch.float64), atol=1e-6, rtol=0.0)
