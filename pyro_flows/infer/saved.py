"""Saving and loading: flows, distributions, guides and fits, in a folder without pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_flows.diagnostics import to_netcdf
from pyro_flows.distributions.module_distribution import ModuleDistribution
from pyro_flows.guides import AmortizedFlow, AutoFlow, AutoPlateFlow
from pyro_flows.io.codec import Decoder, Encoder
from pyro_flows.io.fingerprint import check_fingerprint, check_sites, fingerprint, sites_of
from pyro_flows.io.folder import DRAWS, read_folder, write_folder
from pyro_flows.io.guides import describe_guide, restore_guide
from pyro_flows.io.modules import describe, restore
from pyro_flows.model import LogJoint, read_model
from pyro_flows.model.held_parameters import HeldParameters
from pyro_flows.transforms import FlowTransform

from .amortized import AmortizedFit
from .descent import Training
from .fit_density import DensityFit
from .maximum_likelihood import LikelihoodRun
from .result import Fit

_RUN = ("losses", "validation_losses", "best_epoch", "skipped", "stop_reason")


def save(saved: Any, path: str | Path, *, draws: int = 0, overwrite: bool = False) -> Path:
    """Save a flow, a distribution, a guide or a fit in a folder.

    ``weights.safetensors`` holds parameters and buffers, ``config.json`` the rest as plain data: classes by name with the arguments
    they were made with, and the sites of the model. No pickle is written, and none is read. What would not come back as it is is
    refused now. Encoders and transforms of classes of one's own are registered by ``pf.io.register``, or made anew by the one who
    loads. The model itself and its data are not saved.

    Args:
        saved: A transform, a distribution, a guide after ``setup``, a :class:`~pyro_flows.infer.Fit` or a
            :class:`~pyro_flows.infer.DensityFit`.
        path: The folder, made by this call in one that exists.
        draws: Of a :class:`~pyro_flows.infer.Fit`: number of draws that are written to ``draws.nc``, for arviz; none if 0.
        overwrite: Whether a folder that this function wrote may be replaced.

    Returns:
        The path.

    Raises:
        ValueError: If it cannot be saved, or there is something at the path; the message says what.

    Example:
        >>> import tempfile
        >>> flow = pf.flows.real_nvp(2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(flow, folder + "/flow"))
        >>> torch.equal(again(torch.ones(2)), flow(torch.ones(2)))
        True
    """
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 0 or (draws and not isinstance(saved, Fit)):
        raise ValueError(f"draws must be a number of draws, and 0 for what is no Fit, got {draws!r}")
    if isinstance(saved, AmortizedFit):
        raise ValueError("an AmortizedFit holds all simulations; save its guide: pf.save(fit.guide, path)")
    if isinstance(saved, FlowTransform | ModuleDistribution):
        kind = "transform" if isinstance(saved, FlowTransform) else "distribution"
        data, tensors = describe(saved)
        return write_folder(path, {"kind": kind, "object": data}, tensors, overwrite=overwrite)
    if isinstance(saved, DensityFit):
        data, tensors = describe(saved.distribution)
        run = Encoder().encode({name: getattr(saved.run, name) for name in _RUN})
        figures = Encoder().encode({"objective": saved.objective, "seconds": saved.seconds, "held_out": saved.held_out})
        return write_folder(
            path, {"kind": "density_fit", "object": data, "run": run, "figures": figures}, tensors, overwrite=overwrite
        )
    if isinstance(saved, AutoFlow | AutoPlateFlow | AmortizedFlow):
        data, tensors = describe_guide(saved)
        return write_folder(path, {"kind": "guide", **data, "sites": sites_of(saved)}, tensors, overwrite=overwrite)
    if isinstance(saved, Fit):
        return _save_fit(saved, path, draws, overwrite)
    raise ValueError(f"saved must be a flow, a distribution, a guide or a fit, got {type(saved).__name__}")


def load(
    path: str | Path,
    model: Callable[..., Any] | None = None,
    *args: Any,
    guide: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Load what :func:`save` wrote.

    Nothing in the folder is run and no module is imported by a name in it; an unknown version, class or key is refused, as are
    links, damaged files and NaNs. For a guide or fit the model is read, and compared with the one that was saved.

    Args:
        path: The folder.
        model: The Pyro model, for a guide or a fit.
        args: Its arguments, the data among them.
        guide: A guide made as the saved one was, where its encoder is of a class of one's own.
        device: Where to put a flow or distribution; a guide is where its model's latents are.
        dtype: Type of a flow's or distribution's floating-point numbers; as they were saved if None.
        kwargs: Keyword arguments of the model.

    Returns:
        What was saved.

    Raises:
        ValueError: If a file is damaged, of another version, or of another model; the message says which and how.

    Example:
        >>> import tempfile
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> y = torch.tensor(1.0)
        >>> fit = pf.fit(model, y, guide="affine", max_steps=50, seed=0, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(fit.save(folder + "/fit"), model, y)
        >>> torch.equal(again.sample(5, seed=1)["x"], fit.sample(5, seed=1)["x"])
        True
    """
    config, tensors = read_folder(path)
    try:
        return _loaded(config, tensors, model, args, guide, device, dtype, dict(kwargs or {}))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{Path(path) / 'config.json'} is damaged: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _loaded(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    model: Callable[..., Any] | None,
    args: tuple[Any, ...],
    guide: Any,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    kwargs: dict[str, Any],
) -> Any:
    kind = config.get("kind")
    where = None if device is None else torch.device(device)
    if kind in ("transform", "distribution", "density_fit"):
        if model is not None or guide is not None:
            raise ValueError(f"model and guide are for guides and fits, this is a {kind}; leave them out")
        found = restore(config["object"], tensors, device=where, dtype=dtype)
        if kind != "density_fit":
            return found
        run = LikelihoodRun(**Decoder({}).decode(config["run"]))
        return DensityFit(found, run, **Decoder({}).decode(config["figures"]))
    if kind not in ("guide", "fit"):
        raise ValueError(f"the kind {kind!r} is not known")
    if where is not None or dtype is not None:
        raise ValueError("device and dtype are for flows and distributions; a guide takes those of its model")
    if model is None or not callable(model):
        raise ValueError(f"model must be the Pyro model that was fitted, with its arguments behind it, got {type(model).__name__}")
    if kind == "guide":
        found = restore_guide(config, tensors, model, args, kwargs, guide)
        check_sites(config["sites"], found)
        return found
    return _load_fit(config, tensors, model, args, kwargs, guide)


# Fits


def _save_fit(fit: Fit, path: str | Path, draws: int, overwrite: bool) -> Path:
    data, tensors = describe_guide(fit.guide)
    structure = read_model(fit._model, fit._args, fit._kwargs, allow_local=True)
    held = fit._model.unconstrained if isinstance(fit._model, HeldParameters) else {}
    values = {f"model.{name}": value.cpu().clone() for name, value in held.items()}
    config = {
        "kind": "fit",
        **data,
        "model": fingerprint(structure),
        "stop_reason": fit.stop_reason,
        "record": Encoder().encode(fit.record),
    }
    losses = {"losses": torch.tensor(fit.losses, dtype=torch.float64, device="cpu")}
    extra = None if not draws else (lambda folder: to_netcdf(fit.to_arviz(draws), folder / DRAWS))
    return write_folder(path, config, {**tensors, **values, **losses}, overwrite=overwrite, extra=extra)


def _load_fit(config: dict[str, Any], tensors: dict[str, Tensor], model: Any, args: Any, kwargs: Any, guide: Any) -> Fit:
    structure = read_model(model, args, kwargs, allow_local=True)
    check_fingerprint(config["model"], structure)
    found = restore_guide(config, tensors, model, args, kwargs, guide)
    store = pyro.get_param_store()
    for name, parameter in structure.parameters().items():
        value = tensors.get(f"model.{name}")
        if value is None or value.shape != parameter.shape:
            raise ValueError(f"the parameter {name!r} of the model was not saved, or has another shape now")
        with torch.no_grad():
            store._params[name].copy_(value)
    training = Training(losses=tensors["losses"].tolist(), stop_reason=str(config["stop_reason"]))
    record = Decoder({}).decode(config["record"])
    log_joint = None if isinstance(found, AutoPlateFlow) else LogJoint(model, args, kwargs, structure.with_charts(found.charts))
    return Fit(found, log_joint, training, record, model, args, kwargs)
