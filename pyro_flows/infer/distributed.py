"""Training of one guide by several processes, on one machine or more."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import pyro
import torch
import torch.distributed as torch_distributed
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pyro_flows.guides.plate_context import EmbeddingRows
from pyro_flows.nn.arguments import is_between

from . import processes
from .full_size import FullSize, check_not_local


class Distributed:
    """The processes that ``torchrun`` has started, as a context in which they train one guide.

    Processes, gradients and restarts are those of ``torchrun`` and ``DistributedDataParallel``; this adds what a Pyro model needs
    on top of them: the full size of its plates, parameters that all processes begin with alike, and noise that they do not share.
    The backend is nccl on GPUs, one per process, and gloo elsewhere. A script that is started without ``torchrun`` runs as one
    process, unchanged.

    Args:
        seed: Seed of all random number generators. Until :meth:`wrap` all processes draw the same numbers, afterwards each its own.
        device: Device of this process; by default the GPU of its number on its machine, or the CPU where there is none.
        timeout: Seconds for which a process waits for the others, in each exchange, before it takes them for lost; by default what
            torch has, half an hour with gloo and ten minutes with nccl.

    Raises:
        ValueError: If ``seed`` is not an integer from 0 to 2**32 - 1 or ``timeout`` is not positive; on entering, if a machine has
            more processes than GPUs.
        RuntimeError: On leaving, if another process died or did not answer within the timeout. What a :class:`Checkpoint` wrote is
            whole, and training goes on from it when all processes are started again.

    References:
        Li et al. (2020), *PyTorch distributed: experiences on accelerating data parallel training*,
        https://arxiv.org/abs/2006.15704

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.linspace(1.0, 3.0, 100)
        >>> with Distributed(seed=0) as group:
        ...     shard = y.tensor_split(group.world_size)[group.rank].to(group.device)
        ...     guide = pf.AutoFlow(model, flow="affine").setup(shard)
        ...     loss = group.wrap(pyro.infer.Trace_ELBO(8)(model, guide), shard, full_size={"data": len(y)})
        ...     optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
        ...     for step in range(20):
        ...         optimizer.zero_grad()
        ...         loss(shard).backward()
        ...         optimizer.step()
        ...     done = group.is_main
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device

    def __init__(self, seed: int = 0, device: torch.device | str | None = None, timeout: float | None = None) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
        if timeout is not None and not is_between(timeout, 0, math.inf):
            raise ValueError(f"timeout must be a positive number of seconds, or None, got {timeout!r}")
        self.seed, self.timeout = seed, timeout
        self._given_device = None if device is None else torch.device(device)
        self._owns_group = False
        self._wrapped: list[DistributedDataParallel] = []

    def __enter__(self) -> Distributed:
        self.device = self._find_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if "WORLD_SIZE" in os.environ and not processes.in_group():
            backend, own = ("nccl", self.device) if self.device.type == "cuda" else ("gloo", None)
            patience = None if self.timeout is None else timedelta(seconds=self.timeout)
            torch_distributed.init_process_group(backend, device_id=own, timeout=patience)
            self._owns_group = True
        self.rank, self.world_size = processes.rank(), processes.world_size()
        pyro.set_rng_seed(self.seed)
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if not self._owns_group:
            return
        try:
            if exc_type is None:
                torch_distributed.barrier()  # a process that ends while another still talks to it takes that one down
        except RuntimeError as error:
            exc_value = error
        lost = isinstance(exc_value, RuntimeError) and _is_of_an_exchange(exc_value)
        # A group lives as long as a wrapped loss holds it, and its threads abort the process if they are still there at its exit.
        for wrapped in self._wrapped:
            for name in ("reducer", "logger", "process_group"):
                setattr(wrapped, name, None)
        self._wrapped.clear()
        torch_distributed.destroy_process_group()
        gc.collect()
        self._owns_group = False
        if lost:
            raise RuntimeError(
                f"process {self.rank} of {self.world_size} lost another one, which died or did not answer in time; the first error "
                f"of the others says why. Start all of them again, or let torchrun do it by --max-restarts: training goes on from "
                f"the last checkpoint, if there is one. The exchange that failed said: {str(exc_value).splitlines()[0]}"
            ) from exc_value

    def _find_device(self) -> torch.device:
        if self._given_device is not None:
            return self._given_device
        if not torch.cuda.is_available():
            return torch.device("cpu")
        number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= count:
            raise ValueError(
                f"process {number} of this machine has no GPU of its own, there are {count}; start {count} by --nproc_per_node, "
                f"or give device='cpu'"
            )
        return torch.device("cuda", number)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes files."""
        return self.rank == 0

    def wrap(
        self, loss: nn.Module, *args: Any, full_size: Mapping[str, int], ddp_options: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> nn.Module:
        """The loss with the full size of its plates, as one module whose gradients are averaged over the processes.

        The loss is run once, which shows the parameters that it reaches: those of the modules ``loss`` owns, and also those of
        ``pyro.param`` and ``pyro.module`` in plain functions. All processes then have the values of the first, and every process
        draws random numbers of its own.

        Args:
            loss: A module that returns the loss, as a Pyro ELBO does: ``Trace_ELBO()(model, guide)``.
            args: Arguments of the loss.
            full_size: Number of elements, over all processes, of every plate of which a process holds only some
                (see :class:`FullSize`); ``{}`` where the plates of the model have their full size already.
            ddp_options: Keyword arguments of ``DistributedDataParallel``, such as ``{"find_unused_parameters": True}``.
            kwargs: Keyword arguments of the loss.

        Returns:
            A module, to be called as ``loss`` is and trained by an optimiser of torch, until the end of the block.

        Raises:
            ValueError: If the loss is not a module, returns no single number or reaches no parameter, a plate is not met or larger
                than its full size, or a latent or parameter belongs to the elements that one process holds; later, in a call, if
                the loss makes a parameter that it did not have here.
        """
        if not isinstance(loss, nn.Module):
            raise ValueError(f"loss must be a module, such as Trace_ELBO()(model, guide), got {type(loss).__name__}")
        wrapped: nn.Module = _Loss(loss, full_size)
        wrapped.find_parameters(*args, **kwargs)  # type: ignore[operator]
        if self.world_size > 1:
            wrapped = DistributedDataParallel(wrapped, **dict(ddp_options or {}))
            self._wrapped.append(wrapped)
        own = np.random.SeedSequence(self.seed, spawn_key=(self.rank,)).generate_state(1)
        pyro.set_rng_seed(int(own[0]))
        return wrapped

    def mean(self, value: float | Tensor) -> float:
        """Mean of a number over the processes; every process has to call it.

        Args:
            value: The number of this process, such as its loss.
        """
        return processes.mean(value)

    def progress(self, steps: Iterable[int], **options: Any) -> tqdm[int]:
        """A progress bar, which only the first process shows.

        Args:
            steps: The steps; a range that does not begin at 0, as after a restart, is shown as begun.
            options: Keyword arguments of tqdm.
        """
        if isinstance(steps, range):
            options = {"initial": steps.start, "total": steps.stop, **options}
        return tqdm(steps, disable=not self.is_main, **options)


class _Loss(nn.Module):
    """A loss under :class:`FullSize`, with every parameter that it reaches."""

    def __init__(self, loss: nn.Module, full_size: Mapping[str, int]) -> None:
        super().__init__()
        self.loss = loss
        self._full_size = FullSize(full_size)
        self._names: dict[int, str] = {}

    @torch.no_grad()
    def find_parameters(self, *args: Any, **kwargs: Any) -> None:
        with self._full_size, _ParameterTensors() as met:
            value = self.loss(*args, **kwargs)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return one number as a tensor, got {got}")
        self._refuse_local_latents()
        self._names = {id(parameter): name for name, parameter in self.loss.named_parameters()}
        for name, parameter in met.tensors.items():
            if id(parameter) not in self._names and parameter.requires_grad:
                own = _as_parameter(name, parameter)
                self.register_parameter(name.replace(".", "|"), own)
                self._names[id(own)] = name
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError("loss reaches no parameter that trains; call guide.setup with the arguments of the model first")

    def _refuse_local_latents(self) -> None:
        sizes = self._full_size.sizes
        for module in self.loss.modules():
            if isinstance(module, EmbeddingRows):
                for name in module.sizes.keys() & sizes.keys():
                    check_not_local("the embedding of AutoPlateFlow", name, module.sizes[name], sizes[name])
            if not isinstance(module, AutoContinuous):
                continue
            for name, site in module.prototype_trace.iter_stochastic_nodes():
                for frame in site["cond_indep_stack"]:
                    if frame.name in sizes:
                        check_not_local(
                            f"latent {name!r} of {type(module).__name__}", frame.name, frame.full_size, sizes[frame.name]
                        )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._full_size, _ParameterTensors() as met:
            value = self.loss(*args, **kwargs)
        for name, parameter in met.tensors.items():
            if id(parameter) not in self._names and parameter.requires_grad:
                raise ValueError(
                    f"parameter {name!r} was not there when the loss was wrapped, and would not train; call guide.setup first, "
                    f"or wrap with arguments that reach it"
                )
        return value


class _ParameterTensors(poutine.messenger.Messenger):  # type: ignore[misc]
    """Notes the leaf tensors behind the parameters that a run reaches, by name."""

    def __enter__(self) -> _ParameterTensors:
        self.tensors: dict[str, Tensor] = {}
        return super().__enter__()  # type: ignore[no-any-return]

    def _pyro_post_param(self, msg: Any) -> None:
        given = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(given, nn.Parameter):  # pyro.module: the module computes with its own
            self.tensors[msg["name"]] = given
        elif hasattr(msg["value"], "unconstrained"):
            self.tensors[msg["name"]] = msg["value"].unconstrained()


def _is_of_an_exchange(error: RuntimeError) -> bool:
    """Whether the error comes from an exchange between processes, for which gloo has no class of its own."""
    known = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "caused pair closure")
    return isinstance(error, torch_distributed.DistError) or any(words in str(error) for words in known)


def _as_parameter(name: str, tensor: Tensor) -> nn.Parameter:
    """The tensor as a parameter of torch; the store then holds that, as Pyro does it for its modules."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    store: ParamStoreDict = pyro.get_param_store()
    parameter = nn.Parameter(tensor.detach())
    store._param_to_name.pop(tensor)
    store._params[name] = parameter
    store._param_to_name[parameter] = name
    return parameter
