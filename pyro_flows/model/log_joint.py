"""The log joint density of a model as one function of the flat unconstrained latents, for many particles at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .latents import FlatLatents
from .sites import Site, is_deterministic, is_subsample
from .structure import ModelStructure, is_factor, read_model

_PATHS = ("vmap", "plate", "loop")


class _Evaluate(Messenger):  # type: ignore[misc]
    """Puts values at the latent sites and keeps each site's log-probability; lighter than a trace."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.log_probs: dict[str, Tensor] = {}
        self.pointwise: dict[str, Tensor] = {}
        self.deterministic: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"] or is_subsample(msg):
            return
        if msg["name"] not in self.values:
            raise ValueError(
                f"latent site {msg['name']!r} was not there when the model was read; the model must have the same latent sites "
                f"in every call"
            )
        msg["value"] = self.values[msg["name"]]

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_subsample(msg):
            return
        if is_deterministic(msg):
            self.deterministic[msg["name"]] = msg["value"]
            return
        log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        self.log_probs[msg["name"]] = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        if msg["is_observed"] and not is_factor(msg):
            self.pointwise[msg["name"]] = scale_and_mask(log_prob, 1.0, msg["mask"])


class LogJoint:
    r"""Log joint density :math:`\log p(x, T(z)) + \log|\det \partial T/\partial z|` of flat unconstrained latents.

    Three ways lead there: ``"vmap"`` runs the model under ``torch.func.vmap``, so that one written for a single draw serves;
    ``"plate"`` runs it once inside an outermost particle plate; ``"loop"`` runs it once per particle. Each is compared, at
    setup, with single draws on three particles, values and gradients, and is refused where it differs.

    Args:
        model: A Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        structure: What :func:`read_model` found; read if None.
        path: One of the three ways, or None for the first that is right.

    Raises:
        ValueError: If no way (or not the one asked for) gives what single draws give, or the model draws random numbers that
            are no sample sites.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> LogJoint(model)(torch.zeros(4, 1))
        tensor([-0.9189, -0.9189, -0.9189, -0.9189])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        structure: ModelStructure | None = None,
        path: str | None = None,
    ) -> None:
        if path is not None and path not in _PATHS:
            raise ValueError(f"path must be one of {_PATHS} or None, got {path!r}")
        self.model, self.args, self.kwargs = model, tuple(args), dict(kwargs or {})
        self.structure = read_model(model, args, kwargs) if structure is None else structure
        self.latents = FlatLatents(self.structure)
        self.reasons: list[str] = []
        self._contraction = self._make_contraction() if self.structure.enumerated else None
        self.path = self._choose(_PATHS if path is None else (path,))

    def __call__(self, z: Tensor) -> Tensor:
        """Log joint density ``(N,)`` at unconstrained latents ``(N, D)``."""
        return self._by(self.path, z)

    def _by(self, path: str, z: Tensor) -> Tensor:
        if path == "plate":
            return self._in_particle_plate(z)
        return self._mapped(self._single, z, path)

    def _mapped(self, function: Callable[[Tensor], Any], z: Tensor, path: str) -> Any:
        """A function of one vector applied to the rows of ``z``; by vmap, or row by row."""
        if path == "vmap":
            # The minibatch of a subsampled plate is then the same for all particles.
            return torch.func.vmap(function, randomness="same")(z)
        rows = [function(row) for row in z]
        return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *rows)

    # One particle

    def _run(self, values: Mapping[str, Tensor]) -> _Evaluate:
        evaluate = _Evaluate(values)
        # Validation looks at values, which vmap does not allow; what it would catch shows in the log-density.
        with pyro.validation_enabled(False), poutine.block(), evaluate:
            self.model(*self.args, **self.kwargs)
        return evaluate

    def _single(self, z: Tensor) -> Tensor:
        values, total = self.latents.constrain(z)
        if self._contraction is not None:
            return total + self._contracted(values)
        for log_prob in self._run(values).log_probs.values():
            total = total + log_prob.sum()
        return total

    def _enumerated_trace(self, values: Mapping[str, Tensor]) -> poutine.Trace:
        model = poutine.enum(poutine.condition(self.model, data=values), first_available_dim=-1 - self.structure.max_plate_nesting)
        with pyro.validation_enabled(False), poutine.block():
            return poutine.trace(model).get_trace(*self.args, **self.kwargs)

    def _make_contraction(self) -> TraceEinsumEvaluator:
        trace = self._enumerated_trace(self.structure.initial)
        with pyro.validation_enabled(False):
            return TraceEinsumEvaluator(trace, True, self.structure.max_plate_nesting)

    def _contracted(self, values: Mapping[str, Tensor]) -> Tensor:
        trace = self._enumerated_trace(values)
        with pyro.validation_enabled(False):
            return self._contraction.log_prob(trace)  # type: ignore[union-attr, no-any-return]

    # The particle plate

    def _in_particle_plate(self, z: Tensor) -> Tensor:
        nesting = self.structure.max_plate_nesting
        values, total = self.latents.constrain(z)
        shaped = {
            site.name: values[site.name].reshape(z.shape[:1] + (1,) * (nesting - site.batch_dim) + site.shape)
            for site in self.structure.sites
        }
        with ExitStack() as stack:
            stack.enter_context(pyro.validation_enabled(False))
            stack.enter_context(poutine.block())
            evaluate = stack.enter_context(_Evaluate(shaped))
            stack.enter_context(pyro.plate("_particles", len(z), dim=-1 - nesting))
            self.model(*self.args, **self.kwargs)
        for log_prob in evaluate.log_probs.values():
            total = total + log_prob.reshape(len(z), -1).sum(-1)
        return total

    # Which way

    def _choose(self, paths: Sequence[str]) -> str:
        probe = self._probe()
        expected = self._at_probe("loop", probe)
        if not self.structure.subsampled:
            again = self._at_probe("loop", probe, seed=1)
            if not _agree(again, expected):
                raise ValueError(
                    "the model draws random numbers that are no sample sites, so its density is not a function of its latents; "
                    "make them sample sites or fix them"
                )
        for path in paths:
            if path == "plate" and self.structure.enumerated:
                self.reasons.append("plate: not used with enumerated sites")
                continue
            if path == "loop":
                self.reasons.append("loop: one run of the model per particle")
                return path
            try:
                found = self._at_probe(path, probe)
            except Exception as error:
                self.reasons.append(f"{path}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
                continue
            if _agree(found, expected):
                self.reasons.append(f"{path}: equals single draws on three particles")
                return path
            difference = (found[0] - expected[0]).abs().max()
            self.reasons.append(f"{path}: differs from single draws, by up to {float(difference):.3g} nats")
        raise ValueError(f"path {paths[0]!r} does not serve this model: {'; '.join(self.reasons)}")

    def _probe(self) -> Tensor:
        centre = self.latents.unconstrain(self.structure.initial)
        generator = torch.Generator(device="cpu").manual_seed(0)
        noise = torch.randn(3, self.structure.dim, generator=generator, dtype=torch.float64, device="cpu")
        return centre + 0.1 * noise.to(centre)

    def _at_probe(self, path: str, probe: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Values and gradients at the probe, with the same random numbers each time."""
        z = probe.detach().requires_grad_()
        with torch.random.fork_rng(), torch.enable_grad():
            if path == "loop":
                rows = []
                for row in z:
                    torch.manual_seed(seed)
                    rows.append(self._single(row))
                value = torch.stack(rows)
            else:
                torch.manual_seed(seed)
                value = self._by(path, z)
            if value.shape != (len(probe),):
                raise ValueError(f"log-density has shape {tuple(value.shape)} for {len(probe)} particles")
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    # What else is asked of the model at given latents

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log-likelihood ``(N, batch shape)`` of every observed site at latents ``(N, D)``.

        Empty where discrete sites are enumerated: there is no likelihood given the continuous latents alone.
        """
        if self.structure.enumerated:
            return {}
        return self._collect(lambda values: self._run(values).pointwise, z)

    def constrained(self, z: Tensor) -> dict[str, Tensor]:
        """Values ``(N, site shape)`` of latent and deterministic sites at latents ``(N, D)``."""
        values = self.latents.constrain(z)[0]
        if not self.structure.deterministic or self.structure.enumerated:
            return values
        return {**values, **self._collect(lambda given: self._run(given).deterministic, z)}

    def _collect(self, read: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], z: Tensor) -> dict[str, Tensor]:
        def single(row: Tensor) -> dict[str, Tensor]:
            return read(self.latents.constrain(row)[0])

        return self._mapped(single, z, "vmap" if self.path == "vmap" else "loop")  # type: ignore[no-any-return]

    @torch.no_grad()
    def nonfinite_sites(self, z: Tensor) -> dict[str, int]:
        """At how many of the latents ``(N, D)`` each site's log-probability is not finite; looks at 64 at most."""
        counts: dict[str, int] = {}
        for row in z[:64]:
            values, log_det = self.latents.constrain(row)
            for site in self.structure.sites:
                bad = not bool(torch.isfinite(values[site.name]).all())
                counts[site.name] = counts.get(site.name, 0) + bad
            if self._contraction is None:
                for name, log_prob in self._run(values).log_probs.items():
                    counts[name] = counts.get(name, 0) + (not bool(torch.isfinite(log_prob).all()))
        return counts


def _agree(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Whether values and gradients agree to the accuracy of their type."""
    for one, other in zip(found, expected, strict=True):
        tolerance = 1e3 * torch.finfo(other.dtype).eps
        scale = 1 + other[torch.isfinite(other)].abs().max() if bool(torch.isfinite(other).any()) else 1.0
        if not torch.allclose(one, other, rtol=tolerance, atol=float(tolerance * scale), equal_nan=True):
            return False
    return True
