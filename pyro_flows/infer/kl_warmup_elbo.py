"""The evidence lower bound with KL warm-up and free bits, against latents that a strong decoder ignores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_flows.model.sites import innermost, is_deterministic, is_subsample

_PARTICLES = "num_particles_vectorized"
_Group = frozenset[str]


class KLWarmupELBO(Trace_ELBO):  # type: ignore[misc]
    r"""Evidence lower bound with a weight on the divergence, which may warm up, and free bits.

    The loss is :math:`E_q[-\log p(x \mid z)] + \beta_t \sum_g \max(\lambda n_g, \mathrm{KL}_g)` with
    :math:`\mathrm{KL} = E_q[\log q(z \mid x) - \log p(z)]` by Monte Carlo and
    :math:`\beta_t = \beta_0 + (\beta - \beta_0) \min(1, t/T)` after :math:`t` training steps.

    A group :math:`g` is the latents of one plate, :math:`n_g` the number of its elements in the full plate, and the divergence an
    average over particles and minibatch, so that each element may spend :math:`\lambda` nats for nothing. Latents outside of plates
    have no free bits. A plate whose latents the guide only hands on, drawn in an enclosing plate, is of the group of that one.

    With :math:`\beta_t = 1` and no free bits this is ``Trace_ELBO``, whose other arguments it takes. Training steps are those of
    :meth:`loss_and_grads`, as ``SVI.step`` takes, and of :meth:`differentiable_loss` where gradients are on, not those of
    ``SVI.evaluate_loss``. Their number is in :attr:`steps`, and in :meth:`state_dict` for a training that is resumed.

    Args:
        warmup_steps: Number :math:`T` of training steps until the weight is :math:`\beta`; 0 for none.
        start: Weight :math:`\beta_0` at the first step of a warm-up, not negative.
        beta: Weight :math:`\beta` after it, not negative.
        free_bits: :math:`\lambda`, nats per element of a plate, not negative.
        options: As for ``Trace_ELBO``, such as ``num_particles`` and ``vectorize_particles``.

    Raises:
        ValueError: If an argument is not as described; in use, if a site of the guide is not reparametrised, or with free bits,
            if the guide draws the latents of a plate outside of all plates, so that the plate has no divergence of its own. The
            message names the site or plate.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling (2016), *Improving variational inference with inverse autoregressive
        flow* (free bits), https://arxiv.org/abs/1606.04934;
        Sønderby, Raiko, Maaløe, Sønderby, Winther (2016), *Ladder variational autoencoders* (warm-up),
        https://arxiv.org/abs/1602.02282;
        Higgins et al. (2017), *beta-VAE*, https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> from pyro.infer import SVI
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.zeros(2))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        >>> loss = KLWarmupELBO(warmup_steps=100, free_bits=0.5)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
        >>> for _ in range(25):
        ...     _ = svi.step(torch.ones(5, 2))
        >>> loss.weight, loss.state_dict()
        (0.25, {'steps': 25})
    """

    def __init__(
        self, warmup_steps: int = 0, *, start: float = 0.0, beta: float = 1.0, free_bits: float = 0.0, **options: Any
    ) -> None:
        _check_count("warmup_steps", warmup_steps)
        for name, value in (("start", start), ("beta", beta), ("free_bits", free_bits)):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number that is not negative, got {value!r}")
        particles = options.get("num_particles", 1)
        if not isinstance(particles, int) or isinstance(particles, bool) or particles < 1:
            raise ValueError(f"num_particles must be a positive integer, got {particles!r}")
        super().__init__(**options)
        self.warmup_steps = warmup_steps
        self.start = float(start)
        self.beta = float(beta)
        self.free_bits = float(free_bits)
        self.steps = 0

    @property
    def weight(self) -> float:
        r"""The weight :math:`\beta_t` of the next step."""
        if self.steps >= self.warmup_steps:
            return self.beta
        return self.start + (self.beta - self.start) * self.steps / self.warmup_steps

    def state_dict(self) -> dict[str, int]:
        """The number of training steps taken."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            ValueError: If ``state`` does not hold a number of steps, and that alone.
        """
        if not isinstance(state, Mapping) or set(state) != {"steps"}:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state must be what state_dict() gave, with the key 'steps', got {got}")
        _check_count("state['steps']", state["steps"])
        self.steps = state["steps"]

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss in nats, without gradient and without a step of the warm-up."""
        with torch.no_grad():
            return float(torch_item(self._loss(model, guide, args, kwargs)))

    def differentiable_loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats, with gradient; a step of the warm-up where gradients are on."""
        loss = self._loss(model, guide, args, kwargs)
        self.steps += torch.is_grad_enabled()
        return loss

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss in nats; adds its gradient to that of the parameters, and takes a step of the warm-up."""
        loss = self._loss(model, guide, args, kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)  # type: ignore[no-untyped-call]
        self.steps += 1
        return float(torch_item(loss))

    def _loss(self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        likelihood: Tensor | float = 0.0
        total: dict[_Group, _Latents] = {}
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            likelihood = likelihood + sum(site["log_prob_sum"] for site in _samples(model_trace) if site["is_observed"])
            for names, group in _groups(model_trace, guide_trace).items():
                if names in total:
                    group.divergence = group.divergence + total[names].divergence
                total[names] = group
        divergence: Tensor | float = 0.0
        for names, group in total.items():
            value = group.divergence / self.num_particles
            if self.free_bits and group.handed_on and not names:
                raise ValueError(
                    f"free_bits: the guide draws the latents of plate {group.handed_on!r} outside of it, so that they have no "
                    f"divergence of their own; draw them inside the plate, as an encoder does, or set free_bits=0"
                )
            if self.free_bits and names:
                # Where the average is below the free bits it is constant, and has no gradient.
                value = value.clamp(min=self.free_bits * sum(group.sizes.values()))  # type: ignore[union-attr]
            divergence = divergence + value
        loss = self.weight * divergence - likelihood / self.num_particles
        warn_if_nan(torch_item(loss), "loss")
        return loss if isinstance(loss, Tensor) else torch.tensor(loss)  # a number where there are no sites


@dataclass
class _Latents:
    """What the latents of one group add up to in one trace."""

    divergence: Tensor | float = 0.0
    sizes: dict[tuple[int, ...], float] = field(default_factory=dict)  # elements of the full plate, by place in sequential plates
    is_drawn: bool = False  # whether the guide has a density for them, or only hands values on
    handed_on: str = ""  # name of a plate that was merged into this group

    def add(self, site: dict[str, Any], sign: int) -> None:
        self.divergence = self.divergence + sign * site["log_prob_sum"]
        place = tuple(frame.counter for frame in site["cond_indep_stack"] if not frame.vectorized)
        self.sizes[place] = max(self.sizes.get(place, 0.0), _size(site))


def _samples(trace: Trace) -> list[dict[str, Any]]:
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    return [site for site in sites if not is_subsample(site) and not is_deterministic(site)]


def _groups(model_trace: Trace, guide_trace: Trace) -> dict[_Group, _Latents]:
    """Latents by the plates that they are in; no plates for those that are in none."""
    groups: dict[_Group, _Latents] = {frozenset(): _Latents(is_drawn=True)}
    for site in _samples(guide_trace):
        if not site["fn"].has_rsample:
            raise ValueError(
                f"site {site['name']!r} of the guide is not reparametrised; KLWarmupELBO needs rsample: use Trace_ELBO"
            )
        group = groups.setdefault(_plates(site), _Latents())
        group.add(site, 1)
        group.is_drawn |= not isinstance(innermost(site["fn"]), dist.Delta)
    for site in _samples(model_trace):
        if not site["is_observed"]:
            groups.setdefault(_plates(site), _Latents()).add(site, -1)
    for names in sorted(groups, key=len, reverse=True):
        if not groups[names].is_drawn:
            outer = max((other for other in groups if other < names and groups[other].is_drawn), key=len)
            groups[outer].divergence = groups[outer].divergence + groups.pop(names).divergence
            groups[outer].handed_on = ", ".join(sorted(names - outer))
    return groups


def _plates(site: dict[str, Any]) -> _Group:
    return frozenset(frame.name for frame in site["cond_indep_stack"] if frame.name != _PARTICLES)


def _size(site: dict[str, Any]) -> float:
    """Number of elements of the full plates that a site is in: one each, as much as it is scaled, none where it is masked."""
    log_prob = site["log_prob"].detach()
    ones = torch.ones_like(log_prob)
    if site["mask"] is not None:
        ones = ones * site["mask"]
    total = (ones * site["scale"]).sum()
    particles = [frame.size for frame in site["cond_indep_stack"] if frame.name == _PARTICLES]
    return float(total) / math.prod(particles)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be an integer that is not negative, got {value!r}")
