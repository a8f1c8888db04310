"""What all guides of flows share: names, copies, and values of sites."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyro_flows.model.sites import is_circular, site_support
from pyro_flows.transforms.core import FlowTransform, forget_pyro_links

_INSTANCES = itertools.count()


class FlowGuide(AutoGuide):  # type: ignore[misc]
    """A guide whose latents are those of a model, in unconstrained coordinates.

    A subclass sets ``prototype_trace``, ``_transforms``, ``_unconstrained_shapes``, ``_cond_indep_stacks`` and ``_cut`` when
    it reads the model, and ``_raw_model`` when it is made. Every instance, copies included, has a name of its own.
    """

    prototype_trace: Any
    create_plates: Any
    latent_dim: int
    _raw_model: tuple[Any, ...]
    _transforms: dict[str, Any]
    _unconstrained_shapes: dict[str, torch.Size]
    _cond_indep_stacks: dict[str, list[Any]]
    _cut: list[str]

    # Names and copies

    def _renew_name(self) -> None:
        # Pyro keeps the parameters of two modules of one name in one place, and only the first would train.
        self._pyro_name = f"{type(self).__name__}${next(_INSTANCES)}"

    def __getstate__(self) -> dict[str, Any]:
        forget_pyro_links(self)
        state = self.__dict__.copy()
        state.update(_model=(None,), _raw_model=(None,), master=None, create_plates=None, plates={})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._renew_name()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new.__dict__.update(_model=self._model, _raw_model=self._raw_model, create_plates=self.create_plates)
        return new

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load parameters and buffers, as every module does, after :meth:`setup`.

        Raises:
            ValueError: If the guide has not been set up, and so has none, or has others.
        """
        if self.prototype_trace is None:
            raise ValueError("this guide has no parameters yet; call guide.setup with the arguments of the model first")
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            raise ValueError(
                f"state_dict is that of a guide of another flow, base or coordinates, as fit may choose them; pickle or copy the "
                f"guide, or call set_flow and set_coordinates first. {error}"
            ) from error

    # Values

    @staticmethod
    def _check_draws(num_samples: Any) -> None:
        if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
            raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")

    @staticmethod
    def _probabilities(quantiles: Sequence[float] | Tensor, like: Tensor) -> Tensor:
        probs = torch.as_tensor(quantiles, dtype=like.dtype, device=like.device).reshape(-1)
        if not bool(((probs >= 0) & (probs <= 1)).all()):
            raise ValueError(f"quantiles must lie between 0 and 1, got {probs.tolist()}")
        return probs

    def _check_names(self, values: Mapping[str, Any]) -> None:
        if set(values) != set(self._unconstrained_shapes):
            known = set(self._unconstrained_shapes)
            apart = {"missing": known - set(values), "unknown": set(values) - known}
            wrong = [f"{sorted(names)} {what}" for what, names in apart.items() if names]
            raise ValueError(f"values must hold the sites {sorted(known)}, got {sorted(values)}: {', '.join(wrong)}")

    def _unconstrain_site(
        self,
        name: str,
        value: Any,
        like: Tensor,
        shape: torch.Size | None = None,
        transform: Any = None,
        support: Any = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Unconstrained value of a site, ``(*, unconstrained shape)``, and :math:`\log|\det|` back, ``(*, batch shape)``.

        Args:
            name: The site.
            value: Its value, ``(*, site shape)``.
            like: Tensor whose dtype is expected.
            shape: Shape of the site; that at setup if None.
            transform: From unconstrained values to the support; that at setup if None.
            support: The support; that at setup if None.

        Raises:
            ValueError: If the value has the wrong shape or dtype, or is outside of the support.
        """
        site = self.prototype_trace.nodes[name]
        transform = self._transforms[name] if transform is None else transform
        shape = site["value"].shape if shape is None else shape
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if value.dtype != like.dtype:
            raise ValueError(f"values[{name!r}] has dtype {value.dtype}, the guide has {like.dtype}; convert one of them")
        if value.shape[value.dim() - len(shape) :] != shape:
            expected = ", ".join(["*", *map(str, shape)])
            raise ValueError(f"values[{name!r}] has shape {tuple(value.shape)}, expected ({expected})")
        support = site_support(site["fn"]) if support is None else support
        fits = torch.isfinite(value) if is_circular(site["fn"]) else support.check(value)
        if not bool(fits.all()) or bool(torch.isnan(value).any()):
            raise ValueError(f"values[{name!r}] must lie in the support {support}, got {value.reshape(-1)[:5].tolist()}")
        unconstrained = transform.inv(value)
        log_det = transform.log_abs_det_jacobian(unconstrained, value)
        return unconstrained, sum_rightmost(log_det, log_det.dim() - value.dim() + site["fn"].event_dim)


def check_exact_density(guide: nn.Module) -> None:
    """Refuse a guide whose density is an estimate or a bound, of which importance weights would be wrong.

    Args:
        guide: The guide.

    Raises:
        ValueError: If a transform in it has a log-determinant that is not exact.

    Example:
        >>> from pyro_flows import flows
        >>> check_exact_density(flows.affine(2))
    """
    for module in guide.modules():
        if isinstance(module, FlowTransform) and module.log_det_kind != "exact":
            raise ValueError(
                f"the guide's density is not exact (log_det_kind={module.log_det_kind!r} of its {type(module).__name__}), and "
                f'cannot weigh draws; build the flow with an exact log-determinant, such as log_det="exact" of a residual flow or '
                f'trace="exact" of a continuous one'
            )
