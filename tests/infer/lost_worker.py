"""One of two processes that train; the second leaves at step 3, by being killed or stopped for ever."""

from __future__ import annotations

import os
import signal
import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO

import pyro_flows as pf
from pyro_flows.infer import Distributed


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


y = torch.arange(4.0)
with Distributed(seed=0, timeout=12.0) as group:
    guide = pf.AutoFlow(model, flow="affine").setup(y)
    loss = group.wrap(Trace_ELBO()(model, guide), y, full_size={"data": 8})
    for step in range(6):
        if step == 3 and group.rank == 1:
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        loss(y).backward()
