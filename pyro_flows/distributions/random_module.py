"""Modules with random weights: priors on the parameters of a flow or a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn

from pyro_flows.transforms.core import FlowTransform

Module = TypeVar("Module", bound=nn.Module)
Priors = Mapping[str, TorchDistributionMixin] | Callable[[str, Tensor], TorchDistributionMixin | None]


def random_module(name: str, module: Module, prior: Priors) -> Module:
    r"""The module with weights :math:`\theta \sim p(\theta)` that are drawn here, inside a Pyro model.

    Each parameter with a prior becomes a latent site ``"{name}.{parameter}"``; the others are trained, as ``pyro.module`` does it.
    The result shares everything else with ``module``, which stays as it is. A flow's density is computed after the model has run,
    so that the weights have to be fixed before: Pyro's ``PyroSample`` draws them too late, and flows refuse it.

    Args:
        name: Name of the module in the model.
        module: A flow, a :class:`FlowDistribution` or any other module.
        prior: Distribution of each random parameter, by its name in ``module.named_parameters()``, of the parameter's shape or for
            one element; or a callable ``(parameter name, parameter)`` that returns one, or None for a parameter to train.

    Returns:
        A module of the same class, valid for this run of the model.

    Raises:
        ValueError: If a name in ``prior`` is no parameter, a distribution does not suit its shape, or a drawn value has another
            shape, as inside a plate or with vectorised particles (:func:`pyro_flows.fit` vectorises by ``vmap``, which works).

    References:
        Blundell et al. (2015), *Weight uncertainty in neural networks*, https://arxiv.org/abs/1505.05424

    Example:
        >>> flow = pf.flows.get("nsf_coupling")(1, context_dim=2)
        >>> def model(x, y):
        ...     drawn = random_module("flow", flow, lambda name, parameter: dist.Normal(0.0, 0.1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", pf.FlowDistribution(drawn).condition(x), obs=y)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(5, 2), torch.zeros(5, 1))
        >>> sum(site.startswith("flow.") for site in trace.stochastic_nodes) == len(list(flow.parameters()))
        True
    """
    parameters = dict(module.named_parameters())
    if isinstance(prior, Mapping):
        unknown = prior.keys() - parameters.keys()
        if unknown:
            raise ValueError(f"prior: {min(unknown)!r} is no parameter of the module, which has {list(parameters)}")
    elif not callable(prior):
        raise ValueError(f"prior must be a dictionary or a callable, got {type(prior).__name__}")
    values = {}
    for key, parameter in parameters.items():
        given = prior.get(key) if isinstance(prior, Mapping) else prior(key, parameter)
        if given is not None and parameter.numel():
            values[id(parameter)] = _draw(f"{name}.{key}", given, parameter)
        elif parameter.requires_grad:
            values[id(parameter)] = pyro.param(param_with_module_name(name, key), parameter)
    return _with_parameters(module, values)


def _draw(site: str, prior: TorchDistributionMixin, parameter: Tensor) -> Tensor:
    if not isinstance(prior, TorchDistributionMixin):
        raise ValueError(f"prior of {site!r} must be a Pyro distribution, got {type(prior).__name__}")
    if prior.shape() == ():
        prior = prior.expand(parameter.shape)
    if prior.shape() != parameter.shape:
        raise ValueError(f"prior of {site!r} has shape {tuple(prior.shape())} and the parameter {tuple(parameter.shape)}")
    value = pyro.sample(site, prior.to_event(len(prior.batch_shape)))
    if value.shape != parameter.shape:
        raise ValueError(
            f"site {site!r} has shape {tuple(value.shape)} and the parameter {tuple(parameter.shape)}; draw the weights outside "
            f"of plates, and without vectorize_particles"
        )
    return value  # type: ignore[no-any-return]


def _with_parameters(module: Module, values: Mapping[int, Tensor]) -> Module:
    """A copy of the module and those in it, with some of its parameters replaced and everything else shared."""
    # copy.copy would go by __getstate__, which drops links that Pyro needs until its step ends.
    new = type(module).__new__(type(module))
    new.__dict__.update(module.__dict__)
    replaced = {key: None if tensor is None else values.get(id(tensor), tensor) for key, tensor in module._parameters.items()}
    children = {key: None if child is None else _with_parameters(child, values) for key, child in module._modules.items()}
    new.__dict__.update(_parameters=replaced, _modules=children)
    if isinstance(new, FlowTransform):
        new.__dict__.update(_cache=None, _inv=None)
    return new
