"""The log joint density of a model as one function of the flat unconstrained latents, for many particles at once."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from .agreement import Evaluation, cut_directions, difference
from .dtypes import dtype_hint
from .enumeration import enumerated_trace, finite_sites, summed_log_prob
from .evaluate import Evaluate
from .failures import is_of_the_model, looks_at_values, stack_or_nan, without_numbers, words
from .latents import FlatLatents
from .memory import is_out_of_memory
from .rewrites import LinAlgError, rewritten
from .seeding import TURN
from .sites import location_and_log_scale
from .structure import ModelStructure, read_model

#: Bytes that a model may take for its intermediate results and their gradient, about.
MEMORY = 2**30
#: Tensors as large as the data that are kept for a gradient, about.
_LIVE_TENSORS = 24

_PATHS = ("vmap", "plate", "loop")
_JACOBIAN = "the Jacobian"
_ENUMERATED = "the model with its enumerated sites summed out"


@contextmanager
def _quietly() -> Iterator[None]:
    """Run a model without validation, which looks at values, and without reports to handlers outside."""
    # What validation would catch shows in the log-density.
    with pyro.validation_enabled(False), poutine.block():
        yield


@contextmanager
def _without_vmap_advice() -> Iterator[None]:
    """Keep vmap's word to torch's developers, that an operation goes particle by particle, from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


class LogJoint:
    r"""Log joint density :math:`\log p(x, T(z)) + \log|\det \partial T/\partial z|` of flat unconstrained latents.

    Three ways lead there: ``"vmap"`` runs the model under ``torch.func.vmap``, so that one written for a single draw
    serves; ``"plate"`` runs it once inside an outermost particle plate; ``"loop"`` runs it once per particle. Each is
    compared, at setup, with single draws on three particles, site by site and in its gradient, and is refused where
    it differs. Where vmap fails it is tried once more with what it cannot follow rewritten (see
    :class:`~pyro_flows.model.rewrites.Rewrites`).

    A particle whose covariance has no Cholesky factor, or at which the model raises, gets NaN, and so does not lose the others;
    :attr:`raised` counts what was raised. What is not finite is returned as it is.

    Args:
        model: A Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        structure: What :func:`read_model` found; read if None.
        path: One of the three ways, or None for the first that is right.

    Attributes:
        path: The way taken.
        rewritten: Whether the model runs with rewrites.
        reasons: Why it was taken, and why those before it were not.
        num_evaluations: Latent vectors at which the density was asked for.
        raised: How often the model raised, by the words of the error.

    Raises:
        ValueError: If no way (or not the one asked for) gives what single draws give, the model draws random numbers
            that are no sample sites, or a part of it has no gradient; the message names the site.

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
        if self.structure.local_sites:
            names = [site.name for site in self.structure.local_sites]
            raise ValueError(
                f"latent sites {names} are local to a subsampled plate and have no log joint density; do not subsample that plate"
            )
        self.latents = FlatLatents(self.structure)
        self.reasons: list[str] = []
        self.rewritten = False
        self._indices: Mapping[str, Tensor] = {}
        self.num_evaluations = 0
        self.raised: Counter[str] = Counter()
        self._advised = True
        self._most_at_once = 2**62
        self._own_control_flow = False
        self.path = self._choose(_PATHS if path is None else (path,))

    def __call__(self, z: Tensor) -> Tensor:
        """Log joint density ``(N,)`` at unconstrained latents ``(N, D)``.

        Raises:
            ValueError: If ``z`` has another shape, or the model other latent sites than when it was read.
        """
        self.num_evaluations += len(z)
        if z.dim() != 2 or z.shape[-1] != self.structure.dim:
            raise ValueError(f"z must have shape (N, {self.structure.dim}), got {tuple(z.shape)}")
        with TURN:
            while True:
                try:
                    return self._in_parts(z)
                except (MemoryError, RuntimeError) as error:
                    if not (is_out_of_memory(error) and self.halve(len(z))):
                        raise

    def halve(self, count: int) -> bool:
        """Take half as many particles at once from now on, because memory ran out.

        Args:
            count: How many were asked for.

        Returns:
            Whether that can be: not with one particle, nor where plates draw minibatches, which all particles share.
        """
        at_once = min(count, self.particles_at_once)
        if at_once < 2 or self.structure.subsampled:
            return False
        self._most_at_once = at_once // 2
        self.reasons.append(f"memory ran out with {at_once} particles at once: {at_once // 2} from then on")
        warnings.warn(self.reasons[-1], stacklevel=3)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return True

    def _in_parts(self, z: Tensor) -> Tensor:
        if len(z) <= self.particles_at_once:
            return self._at_once(z)
        parts = z.split(self.particles_at_once)
        if not (torch.is_grad_enabled() and z.requires_grad):
            return torch.cat([self._at_once(part) for part in parts])
        # What a part keeps for its gradient is made again when that is asked for, so that one part is kept at a time.
        return torch.cat([checkpoint(self._at_once, part, use_reentrant=False) for part in parts])

    def _at_once(self, z: Tensor) -> Tensor:
        return self._without_the_failed(lambda path, rewrite: self._by(path, z, rewrite))

    def _without_the_failed(self, run: Callable[[str, bool], Any]) -> Any:
        """What ``run(path, rewrite)`` gives by the path taken, or by one that copes with what the model raises."""
        rewrite = self.rewritten
        try:
            return run(self.path, rewrite)
        except Exception as error:
            if not is_of_the_model(error):
                raise
            if isinstance(error, LinAlgError):
                rewrite = True  # only for this call: intercepting every operation costs time
        if rewrite != self.rewritten:
            try:
                return run(self.path, rewrite)
            except Exception as error:
                if not is_of_the_model(error):
                    raise
        return run("loop", rewrite)

    @property
    def particles_at_once(self) -> int:
        """Particles for which the model runs at once: more are taken in parts, so that memory stays within :data:`MEMORY`."""
        if self.structure.subsampled:  # parts would see different minibatches
            return 2**62
        widest = max([self.structure.dim, *(value.numel() for value in self.structure.observed.values())])
        return min(self._most_at_once, max(1, MEMORY // (_LIVE_TENSORS * widest * self.structure.dtype.itemsize)))

    @torch.no_grad()
    def full(self, z: Tensor) -> Tensor:
        r"""Log joint density ``(N,)`` with all data, where the model's plates draw minibatches; without gradient.

        A minibatch gives an unbiased estimate of the log-density, whose exponential is no weight. Here the minibatches run
        through the plates systematically: those that tile the :math:`n` elements by :math:`b` count :math:`b/n` each, and
        those filled from the :math:`r` that are left over share :math:`r/n`.

        Raises:
            ValueError: If the indices cannot be set, as with enumerated sites, or too many minibatches would be needed.
        """
        if not self.structure.subsampled:
            return self(z)
        if self.structure.enumerated:
            raise ValueError(
                f"plates {list(self.structure.subsampled)} are subsampled and sites are enumerated, so the log-density is known "
                f"by estimates only, which give no weights; call fit with all the data, without subsampling"
            )
        windows = [_windows(name, *sizes) for name, sizes in self._subsample_sizes(z[0]).items()]
        count = math.prod(map(len, windows))
        if count > 4096:
            raise ValueError(
                f"plates {list(self.structure.subsampled)}: all data would take {count:,} minibatches, 4,096 at most are taken; "
                f"choose a larger subsample_size, best one that divides the size of the plate"
            )
        total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        try:
            for chosen in itertools.product(*windows):
                self._indices = {name: indices.to(z.device) for name, indices, _ in chosen}
                total += math.prod(share for _, _, share in chosen) * self(z).double()
        finally:
            self._indices = {}
        return total

    def _subsample_sizes(self, z: Tensor) -> dict[str, tuple[int, int]]:
        """Number of elements and of those in a minibatch, by plate."""
        with torch.random.fork_rng():
            sizes = self._run(self.latents.constrain(z)[0]).subsample_sizes
        return {name: pair for name, pair in sizes.items() if pair[0] != pair[1]}

    def _by(self, path: str, z: Tensor, rewrite: bool) -> Tensor:
        if path == "plate":
            return self._total(rewritten(self._plate_terms)(z) if rewrite else self._plate_terms(z))
        return self._mapped(self._single, z, path, rewrite, like=z.new_zeros(()))

    def _mapped(self, function: Callable[[Tensor], Any], z: Tensor, path: str, rewrite: bool, like: Tensor | None = None) -> Any:
        """A function of one vector applied to the rows of ``z``; by vmap, or row by row, with NaN where the model raises.

        What it returns is ``like``, or like what it returns for other rows.
        """
        call = rewritten(function) if rewrite else function
        if path == "vmap":
            # The minibatch of a subsampled plate is then the same for all particles.
            with _without_vmap_advice() if self._advised else nullcontext():
                return torch.func.vmap(call, randomness="same")(z)
        rows: list[Any] = []
        failure: Exception | None = None
        for row in z:
            try:
                rows.append(call(row))
            except Exception as error:
                if not is_of_the_model(error) or (isinstance(error, LinAlgError) and not rewrite):
                    raise
                failure = error
                self.raised[without_numbers(words(error))] += 1
                rows.append(None)
        if failure is not None:
            if like is None:
                like = next((found for found in rows if found is not None), None)
            if like is None:
                like = self._at_the_start(function, failure)
            return stack_or_nan(rows, like, z)
        return tree_map(lambda *leaves: torch.stack(leaves), *rows)

    def _at_the_start(self, function: Callable[[Tensor], Any], failure: Exception) -> Any:
        """What a function gives at the initial point, for its shapes."""
        start = self.latents.unconstrain(self.structure.initial)
        try:
            return function(start) if not self.rewritten else rewritten(function)(start)
        except Exception:
            raise failure from None

    # One particle

    def _run(self, values: Mapping[str, Tensor], shapes: bool = True) -> Evaluate:
        evaluate = Evaluate(values, self.structure, shapes)
        evaluate.given_indices = self._indices
        with _quietly(), evaluate:
            self.model(*self.args, **self.kwargs)
        evaluate.check_all_reached()
        return evaluate

    def _enumerated_trace(self, values: Mapping[str, Tensor]) -> poutine.Trace:
        structure = self.structure
        with _quietly():
            return enumerated_trace(
                lambda: self.model(*self.args, **self.kwargs), values, structure.max_plate_nesting, structure.stand_ins
            )

    def _terms(self, z: Tensor) -> dict[str, Tensor]:
        values, log_det = self.latents.constrain(z)
        terms = {_JACOBIAN: log_det}
        if self.structure.enumerated:
            with pyro.validation_enabled(False):
                terms[_ENUMERATED] = log_det.new_zeros(()) + summed_log_prob(self._enumerated_trace(values))
        else:
            for name, log_prob in self._run(values).log_probs.items():
                terms[name] = log_prob.sum()
        return terms

    def _single(self, z: Tensor) -> Tensor:
        return self._total(self._terms(z))

    @staticmethod
    def _total(terms: Mapping[str, Tensor]) -> Tensor:
        first, *others = terms.values()
        for term in others:
            first = first + term
        return first

    # The particle plate

    def _in_particle_plate(self, z: Tensor) -> tuple[Evaluate, Tensor]:
        nesting = self.structure.max_plate_nesting
        values, log_det = self.latents.constrain(z)
        shaped = {
            site.name: values[site.name].reshape(z.shape[:1] + (1,) * (nesting - site.batch_dim) + site.shape)
            for site in self.structure.sites
        }
        with ExitStack() as stack:
            stack.enter_context(_quietly())
            stack.enter_context(pyro.plate("_particles", len(z), dim=-1 - nesting))
            return self._run(shaped, shapes=False), log_det

    def _plate_terms(self, z: Tensor) -> dict[str, Tensor]:
        nesting = self.structure.max_plate_nesting
        evaluate, log_det = self._in_particle_plate(z)
        terms = {_JACOBIAN: log_det}
        for name, log_prob in evaluate.log_probs.items():
            if log_prob.dim() > nesting:
                terms[name] = log_prob.reshape(len(z), -1).sum(-1)
            else:  # the same for all particles
                terms[name] = log_prob.sum().expand(len(z))
        return terms

    # Which way

    def _choose(self, paths: Sequence[str]) -> str:
        probe, expected = self._reference()
        self._check_deterministic(probe, expected)
        always = self._check_gradient(probe, expected)
        if always:
            self.rewritten = True
            expected = self._at(probe, "loop", True)
            self.reasons.append("rewritten: autograd does not follow the model as it is written")
        if not expected.is_finite:
            self.reasons.append("the log-density or its gradient is not finite at the three particles compared")
        for path in paths:
            if path == "loop":
                self.reasons.append("loop: one run of the model per particle")
                return path
            if path == "plate" and self.structure.enumerated:
                self.reasons.append("plate: not used with enumerated sites")
                continue
            if path == "plate" and self._own_control_flow:
                # What branches on a draw in single runs branches on all particles at once in the plate.
                self.reasons.append("plate: not tried, since the model itself branches on values or takes numbers out of tensors")
                continue
            # The plate needs no rewrites that vmap would not have taken first.
            for rewrite in (True,) if always else (False, True) if path == "vmap" else (False,):
                label = f"{path}, rewritten" if rewrite else path
                refusal = self._refusal(path, probe, expected, rewrite)
                if refusal is None:
                    self.reasons.append(f"{label}: equals single draws on three particles")
                    self.rewritten = rewrite
                    return path
                self.reasons.append(f"{label}: {refusal}")
        raise ValueError(f"path {paths[0]!r} does not serve this model: {'; '.join(self.reasons)}")

    def _refusal(self, path: str, probe: Tensor, expected: Evaluation, rewrite: bool) -> str | None:
        try:
            refusal = difference(self._at(probe, path, rewrite), expected)
            if refusal is None and path == "vmap":
                # Filtering warnings costs time, so once it is known not to be needed it is left out.
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    self._advised = False
                    self._at(probe, path, rewrite)
                self._advised = bool(caught)
            return refusal
        except Exception as error:
            if path == "vmap" and not rewrite:
                self._own_control_flow = looks_at_values(error)
            return words(error)

    def _reference(self) -> tuple[Tensor, Evaluation]:
        """Three particles at which the density is finite, where such are found, and single draws there."""
        centre = self.latents.unconstrain(self.structure.initial)
        generator = torch.Generator(device="cpu").manual_seed(0)
        expected: Evaluation | None = None
        failure: Exception | None = None
        for scale in (0.5, 0.1, 0.5, 1.0, 1.0, 1.0):
            noise = torch.randn(3, self.structure.dim, generator=generator, dtype=torch.float64, device="cpu")
            # The last tries forget the initial values, which may themselves be where the density is not finite.
            probe = (centre if scale < 1.0 else torch.zeros_like(centre)) + scale * noise.to(centre)
            try:
                expected = self._at(probe, "loop", False)
            except LinAlgError:
                expected = self._at(probe, "loop", True)
            except Exception as error:
                if not is_of_the_model(error):
                    raise
                failure = error
                continue
            if expected.is_finite:
                break
        if expected is None:
            hint = dtype_hint(failure, self.args, self.kwargs) if failure is not None else ""
            if hint:
                raise ValueError(f"the model raised {type(failure).__name__}: {failure}{hint}") from failure
            raise failure  # type: ignore[misc]
        return probe, expected

    def _at(self, probe: Tensor, path: str, rewrite: bool, seed: int = 0) -> Evaluation:
        """Values, gradients and terms at the probe, with the same random numbers for each particle."""
        z = probe.detach().requires_grad_()
        with torch.random.fork_rng(), torch.enable_grad():
            if path == "loop":
                call = rewritten(self._terms) if rewrite else self._terms
                rows = []
                for row in z:
                    torch.manual_seed(seed)
                    rows.append(call(row))
                terms = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            else:
                torch.manual_seed(seed)
                if path == "plate":
                    terms = rewritten(self._plate_terms)(z) if rewrite else self._plate_terms(z)
                else:
                    terms = self._mapped(self._terms, z, path, rewrite)
            value = self._total(terms)
            if value.shape != (len(probe),):
                raise ValueError(f"log-density has shape {tuple(value.shape)} for {len(probe)} particles")
            if not value.requires_grad:
                raise ValueError(
                    f"the log joint density depends on none of the latent sites {[site.name for site in self.structure.sites]}, so "
                    f"the posterior is improper; give them priors, or data that depend on them"
                )
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return Evaluation(value.detach(), gradient, {name: term.detach() for name, term in terms.items()})

    def _check_deterministic(self, probe: Tensor, expected: Evaluation) -> None:
        """Refuse a model whose density depends on random numbers other than its sites and subsampled plates."""
        if self.structure.subsampled:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                self._indices = (
                    dict(self._run(self.latents.constrain(probe[0])[0]).indices) if not self.structure.enumerated else {}
                )
            if not self._indices:
                return
            expected = self._at(probe, "loop", False, seed=0)
        try:
            again = self._at(probe, "loop", False, seed=1)
        except LinAlgError:
            again = self._at(probe, "loop", True, seed=1)
        self._indices = {}
        apart = difference(again, expected)
        if apart is not None:
            raise ValueError(
                f"the model draws random numbers that are no sample sites, so its density is not a function of its "
                f"latents: a second run {apart.replace('from single draws', 'from the first')}; make them sample sites "
                f"or fix them"
            )

    def _check_gradient(self, probe: Tensor, expected: Evaluation) -> bool:
        """Whether only the rewritten model has the right gradient; refuse one whose gradient stays wrong."""
        if not expected.is_finite:
            return False
        blocks = {site.name: slice(site.start, site.stop) for site in self.structure.sites}

        def single(z: Tensor) -> Tensor:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                try:
                    return self._single(z)
                except LinAlgError:
                    return rewritten(self._single)(z)

        if not cut_directions(single, probe, expected.gradient, blocks):
            return False
        again = self._at(probe, "loop", True)
        cut = cut_directions(single, probe, again.gradient, blocks)
        if cut:
            raise ValueError(
                f"the log joint density depends on latent sites {cut} in a way that autograd does not see (.item(), "
                f"float(), .detach(), .numpy() or torch.no_grad() on what is made of them); keep them tensors"
            )
        return True

    # What else is asked of the model at given latents

    def log_likelihood(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log-likelihood ``(N, batch shape)`` of every observed site at latents ``(N, D)``.

        Empty where discrete sites are enumerated: there is no likelihood given the continuous latents alone.
        """
        if self.structure.enumerated:
            return {}
        return self._collect(lambda evaluate: evaluate.pointwise, z)

    def log_priors(self, z: Tensor) -> dict[str, Tensor]:
        """Pointwise log-density ``(N, batch shape)`` of every latent site's prior at latents ``(N, D)``, in the model's own space.

        Empty where discrete sites are enumerated.
        """
        if self.structure.enumerated:
            return {}
        names = [site.name for site in self.structure.sites]
        return self._collect(lambda evaluate: {name: evaluate.log_probs[name] for name in names}, z)

    def deterministics(self, z: Tensor) -> dict[str, Tensor]:
        """Values ``(N, site shape)`` of the deterministic sites at latents ``(N, D)``.

        Empty where discrete sites are enumerated.
        """
        if not self.structure.deterministic or self.structure.enumerated:
            return {}
        return self._collect(lambda evaluate: evaluate.deterministic, z)

    def locations_and_log_scales(self, z: Tensor) -> dict[str, Tensor]:
        """Location and log-scale ``(N, site shape, 2)`` of the priors of location-scale families at latents ``(N, D)``.

        In unconstrained coordinates, so that a log-normal prior has those of its logarithm. Other sites are left out.
        """

        def read(evaluate: Evaluate) -> dict[str, Tensor]:
            found = {name: location_and_log_scale(fn, evaluate.values[name].shape) for name, fn in evaluate.priors.items()}
            return {name: torch.stack(pair, -1) for name, pair in found.items() if pair is not None}

        return self._collect(read, z)

    def constrained(self, z: Tensor) -> dict[str, Tensor]:
        """Values ``(N, site shape)`` of latent and deterministic sites at latents ``(N, D)``."""
        return {**self.latents.constrain(z)[0], **self.deterministics(z)}

    def _collect(self, read: Callable[[Evaluate], dict[str, Tensor]], z: Tensor) -> dict[str, Tensor]:
        def single(row: Tensor) -> dict[str, Tensor]:
            return read(self._run(self.latents.constrain(row)[0]))

        if self.path == "plate" and len(z) > 3:
            few = self._mapped(single, z[:3], "loop", self.rewritten)
            try:
                if _same(self._collect_in_plate(read, z[:3], few), few):
                    return self._collect_in_plate(read, z, few)
            except Exception as error:
                if not is_of_the_model(error):
                    raise
        # Reads in the plate may be wrong although the density is right: a deterministic site that sums over all, say.
        return self._without_the_failed(lambda path, rewrite: self._mapped(single, z, path, rewrite))

    def _collect_in_plate(
        self, read: Callable[[Evaluate], dict[str, Tensor]], z: Tensor, like: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        found = read(self._in_particle_plate(z)[0])
        reshaped = {}
        for name, value in found.items():
            shape = z.shape[:1] + like[name].shape[1:]
            reshaped[name] = value.reshape(shape) if value.numel() == shape.numel() else value
        return reshaped

    @torch.no_grad()
    def nonfinite_sites(self, z: Tensor) -> dict[str, int]:
        """At how many of the latents ``(N, D)`` each site's value or log-probability is not finite.

        Looks at 64 of them at most; where the model raises, its error stands for a site. Of enumerated models, where an impossible
        state is all right, NaN and plus infinity are counted.
        """
        counts: dict[str, int] = {}
        for row in z[:64]:
            values, _ = self.latents.constrain(row)
            bad = {name: not bool(torch.isfinite(value).all()) for name, value in values.items()}
            try:
                found = rewritten(lambda _: self._nonfinite(values))(row)  # noqa: B023
            except Exception as error:
                if not is_of_the_model(error):
                    raise
                found = {f"the model itself, which raised {words(error)}": True}
            for name, wrong in found.items():
                bad[name] = bad.get(name, False) or wrong
            for name, wrong in bad.items():
                counts[name] = counts.get(name, 0) + wrong
        return counts

    def _nonfinite(self, values: Mapping[str, Tensor]) -> dict[str, bool]:
        if self.structure.enumerated:
            return {name: not finite for name, finite in finite_sites(self._enumerated_trace(values)).items()}
        return {name: not bool(torch.isfinite(p).all()) for name, p in self._run(values).log_probs.items()}


def _windows(name: str, size: int, batch: int) -> list[tuple[str, Tensor, float]]:
    """Minibatches over which a weighted mean of log joint densities is that with all data: indices and shares."""
    whole, rest = divmod(size, batch)
    found = [(name, torch.arange(i * batch, (i + 1) * batch, device="cpu"), batch / size) for i in range(whole)]
    if rest:
        left = torch.arange(size - rest, size, device="cpu")
        count = rest // math.gcd(rest, batch)
        # Laid end to end, these hold each of what is left over equally often.
        tiled = left.repeat(count * batch // rest).reshape(count, batch)
        found += [(name, row, rest / (size * count)) for row in tiled]
    return found


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return set(found) == set(expected) and all(
        found[name].shape == value.shape and torch.allclose(found[name], value, rtol=1e-4, atol=1e-6, equal_nan=True)
        for name, value in expected.items()
    )
