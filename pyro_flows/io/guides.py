"""Guides as plain data and tensors, and back, for a model that the one who loads brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor, nn

from pyro_flows.guides import AmortizedFlow, AutoFlow, AutoPlateFlow
from pyro_flows.guides.plate_context import EncoderRows
from pyro_flows.nn.recorded import Recorded

from .codec import Decoder, Encoder
from .modules import describe, describe_state, restore, state_from
from .state import set_state

Guide = AutoFlow | AutoPlateFlow | AmortizedFlow


class Bundle(Recorded, nn.Module):
    """Modules that are described together, for they share others.

    Args:
        parts: The modules.

    Example:
        >>> len(Bundle([torch.nn.Identity()]).parts)
        1
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


def describe_guide(guide: Guide) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plain data and tensors that make a guide again, given its model.

    Raises:
        ValueError: If it is not set up, or holds what a file cannot describe.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> describe_guide(pf.AutoFlow(model, flow="affine").setup())[0]["guide"]
        'AutoFlow'
    """
    if not isinstance(guide, AutoFlow | AutoPlateFlow | AmortizedFlow):
        raise ValueError(f"guide must be an AutoFlow, AutoPlateFlow or AmortizedFlow, got {type(guide).__name__}")
    if guide.prototype_trace is None:
        raise ValueError("the guide is not set up, so there is nothing to save; call guide.setup(*args, **kwargs) or train it")
    found: dict[str, Any] = {"guide": type(guide).__name__}
    if isinstance(guide, AutoFlow):
        found["distribution"], tensors = describe(guide.distribution, "guide")
        found["charts"], charts = describe_state(guide._chart_modules, "charts")
        return found, {**tensors, **charts}
    if isinstance(guide, AmortizedFlow):
        return _describe_amortized(guide, found)
    encoder = Encoder()
    options: dict[str, Any] = {
        "context": guide._context,
        "flow": guide._flow,
        "flows": guide._flows,
        "flow_options": guide._flow_options,
    }
    options |= {"rows": guide._rows, "sparse": guide._sparse, "init_scale": guide._init_scale}
    try:
        if guide.init_loc_fn.init_loc_fn is not init_to_median:
            raise ValueError("init_loc_fn is a function, which a file cannot describe")
        found["options"] = encoder.encode(options, "AutoPlateFlow")
    except ValueError as error:
        found["given"] = str(error)
        encoder = Encoder()
    found["encoder_rows"] = [source.rows if isinstance(source, EncoderRows) else None for source in guide.sources]
    found["state"], tensors = describe_state(guide, "guide")
    return found, {**tensors, **{f"guide/{name}": value.cpu().clone() for name, value in encoder.tensors.items()}}


def _describe_amortized(guide: AmortizedFlow, found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    found |= {"observed": list(guide.observed_shapes), "encoder_input": guide._encoder_input, "num_members": guide.num_members}
    standardised = {"observation.mean": guide.observation_mean, "observation.scale": guide.observation_scale}
    tensors = {name: value.detach().cpu().clone() for name, value in standardised.items()}
    try:
        found["parts"], parts = describe(Bundle(guide.parts), "guide")
    except ValueError as error:
        if not any(member.encoder is not None for member in guide.members):
            raise
        found["given"] = str(error)
        found["state"], parts = describe_state(guide, "guide")
    return found, {**tensors, **parts}


def restore_guide(
    data: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    guide: Guide | None = None,
) -> Guide:
    """The guide of a description, for a model.

    Args:
        data: Plain data.
        tensors: Tensors of the file.
        model: The model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        guide: A guide made as the one that was saved, where its encoder is a class of one's own; None where a file describes it.

    Raises:
        ValueError: If the description is damaged, or a guide is needed and not given.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> saved = describe_guide(pf.AutoFlow(model, flow="affine").setup())
        >>> type(restore_guide(*saved, model, (), {})).__name__
        'AutoFlow'
    """
    kind = data.get("guide")
    if kind not in ("AutoFlow", "AutoPlateFlow", "AmortizedFlow"):
        raise ValueError(f"the description names the guide {kind!r}, which is not known")
    if "given" in data and guide is None:
        raise ValueError(
            f"guide is needed: what was saved holds something that a file does not describe ({data['given']}); make a guide as it "
            f"was made then, and pass it as guide="
        )
    if guide is not None and type(guide).__name__ != kind:
        raise ValueError(f"guide must be an {kind}, as was saved, got {type(guide).__name__}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "AutoFlow":
            return _restore_auto_flow(data, tensors, guide or AutoFlow(model, flow="affine"), args, kwargs)
        if kind == "AmortizedFlow":
            return _restore_amortized(data, tensors, model, args, kwargs, guide)
        return _restore_plates(data, tensors, model, args, kwargs, guide)


def _restore_auto_flow(data: Mapping[str, Any], tensors: Mapping[str, Tensor], guide: Any, args: Any, kwargs: Any) -> AutoFlow:
    guide.setup(*args, **kwargs)
    q = restore(data["distribution"], tensors, "guide", device=guide.like.device)
    if tuple(q.event_shape) != (guide.latent_dim,):
        raise ValueError(f"the guide that was saved has {tuple(q.event_shape)} latent dimensions and the model {guide.latent_dim}")
    if q.transform.parts[1].loc.dtype != guide.like.dtype:
        raise ValueError(f"the guide that was saved is of {q.transform.parts[1].loc.dtype} and the model of {guide.like.dtype}")
    charts = {name.removeprefix("charts."): value for name, value in tensors.items() if name.startswith("charts.")}
    set_state(guide._chart_modules, state_from(data.get("charts", {}), charts))
    guide.distribution = q
    guide._given_base = (None if q.has_default_base else q.base,)
    return guide  # type: ignore[no-any-return]


def _restore_plates(
    data: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Any, args: Any, kwargs: Any, guide: Any
) -> AutoPlateFlow:
    if guide is None:
        arguments = {name.removeprefix("guide/"): value for name, value in tensors.items() if name.startswith("guide/")}
        options = Decoder(arguments, 64 * sum(value.numel() for value in tensors.values()) + 10**6).decode(data["options"])
        flows = options.pop("flows")
        flow = {"globals" if key == ("globals",) else key: value for key, value in flows.items()} or options.pop("flow")
        options.pop("flow", None)
        guide = AutoPlateFlow(model, options.pop("context"), flow, **options)
    guide.setup(*args, **kwargs)
    _set_all(guide, data, tensors)
    for source, rows in zip(guide.sources, data.get("encoder_rows", []), strict=True):
        if isinstance(source, EncoderRows):
            source.rows = rows
    return guide  # type: ignore[no-any-return]


def _restore_amortized(
    data: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Any, args: Any, kwargs: Any, guide: Any
) -> AmortizedFlow:
    if "parts" not in data:
        guide.setup(*args, **kwargs)
        _set_all(guide, data, tensors)
        return guide  # type: ignore[no-any-return]
    if guide is None:
        options = {"observed": list(data["observed"]), "encoder_input": data["encoder_input"], "num_members": data["num_members"]}
        guide = AmortizedFlow(model, **options)
    target = guide.read(*args, **kwargs)
    device = target.structure.device
    parts = list(restore(data["parts"], tensors, "guide", device=device).parts)
    mean, scale = (tensors[f"observation.{name}"].to(device) for name in ("mean", "scale"))
    guide.setup_from(parts, mean, scale, target)
    return guide  # type: ignore[no-any-return]


def _set_all(guide: nn.Module, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    own = {name.removeprefix("guide."): value for name, value in tensors.items() if name.startswith("guide.")}
    set_state(guide, state_from(data.get("state", {}), own))
