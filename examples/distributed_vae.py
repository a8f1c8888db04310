"""A variational autoencoder with a flow posterior, trained by one process or by several.

    python examples/distributed_vae.py
    torchrun --standalone --nproc_per_node=2 examples/distributed_vae.py --checkpoint vae.pt

The same script runs on one CPU, by several processes over gloo and on several GPUs over nccl. Each process reads its own part of
every epoch. A run that was killed goes on with --resume, and ends where it would have ended.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor
from torch.utils.data import DistributedSampler

import pyro_flows as pf

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist" / "t10k-images-idx3-ubyte.zip"


class Model(PyroModule):
    """Binary images whose pixels are independent given the latents."""

    def __init__(self, num_pixels: int, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = pf.nn.MLP(latent_dim, num_pixels, (200,))

    def forward(self, images: Tensor) -> None:
        with pyro.plate("images", len(images)):
            z = pyro.sample("z", dist.Normal(images.new_zeros(self.latent_dim), images.new_ones(())).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=images)


class Guide(PyroModule):
    """An inverse autoregressive flow for the latents of an image, conditional on what an encoder makes of it.

    By hand; ``pf.AutoPlateFlow(model, context={"images": encoder}, flow="iaf").setup(images)`` is such a guide in one line.
    """

    def __init__(self, num_pixels: int, latent_dim: int, context_dim: int = 32) -> None:
        super().__init__()
        self.encoder = pf.nn.MLP(num_pixels, context_dim, (200,))
        self.posterior = pf.FlowDistribution(pf.flows.iaf(latent_dim, context_dim, num_layers=2))

    def forward(self, images: Tensor) -> None:
        with pyro.plate("images", len(images)):
            pyro.sample("z", self.posterior.condition(self.encoder(images)))


def read_images(path: Path, quick: bool) -> Tensor:
    """Zeros and ones, one row an image: the digits where the file is there, else bars on a grid of 8 x 8."""
    if quick or not path.exists():
        generator = torch.Generator().manual_seed(0)
        rows, columns = torch.rand(2, 2000, 8, generator=generator) < 0.2
        return (rows[:, :, None] | columns[:, None, :]).flatten(1).float()
    with zipfile.ZipFile(path) as archive:
        content = archive.read(archive.namelist()[0])
    return (torch.frombuffer(bytearray(content[16:]), dtype=torch.uint8).reshape(-1, 784) > 127).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten steps on small images")
    parser.add_argument("--steps", type=int, help="training steps (default 2000, with --quick 10)")
    parser.add_argument("--batch", type=int, default=128, help="images per step, over all processes (default 128)")
    parser.add_argument("--latents", type=int, default=16, help="latent dimensions (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default 0)")
    parser.add_argument("--mnist", type=Path, default=MNIST, help="zipped IDX file of images; without it images are made up")
    parser.add_argument("--checkpoint", type=Path, help="file to write the state of the run to")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints (default 200)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, where there is one")
    parser.add_argument("--picture", type=Path, default=Path("distributed_vae.png"), help="where the picture goes")
    arguments = parser.parse_args()
    if arguments.resume and not arguments.checkpoint:
        parser.error("--resume needs --checkpoint")
    steps = arguments.steps or (10 if arguments.quick else 2000)

    with pf.infer.Distributed(seed=arguments.seed) as group:
        images = read_images(arguments.mnist, arguments.quick).to(group.device)
        held_out, images = images[: len(images) // 10], images[len(images) // 10 :]
        num_pixels, batch_size = images.shape[1], arguments.batch // group.world_size
        sampler = DistributedSampler(images, group.world_size, group.rank, seed=arguments.seed)

        model = Model(num_pixels, arguments.latents).to(group.device)
        guide = Guide(num_pixels, arguments.latents).to(group.device)
        loss = group.wrap(Trace_ELBO()(model, guide), images[:batch_size], full_size={"images": len(images)})
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
        start = 0
        if arguments.checkpoint:
            checkpoint = pf.infer.Checkpoint(arguments.checkpoint, loss=loss, optimizer=optimizer)
            start = checkpoint.load() if arguments.resume else 0
        if group.is_main:
            print(f"{group.world_size} processes, {len(images)} images of {num_pixels} pixels, goes on at step {start}")

        batches = -(-len(sampler) // batch_size)
        order = torch.empty(0)
        seen: list[tuple[int, float]] = []
        bar = group.progress(range(start, steps))
        for step in bar:
            epoch, batch = divmod(step, batches)
            if batch == 0 or step == start:
                sampler.set_epoch(epoch)
                order = torch.tensor(list(sampler))
            optimizer.zero_grad()
            value = loss(images[order[batch * batch_size : (batch + 1) * batch_size]])
            value.backward()
            optimizer.step()
            if step % 50 == 0:
                seen.append((step, group.mean(value) / len(images)))
                bar.set_postfix({"nats per image": f"{seen[-1][1]:.2f}"})
            if arguments.checkpoint and ((step + 1) % arguments.every == 0 or step + 1 == steps):
                checkpoint.save(step + 1)

        mine = held_out.tensor_split(group.world_size)[group.rank]
        with torch.no_grad():
            bound = group.mean(Trace_ELBO(10).loss(model, guide, mine)) * group.world_size / len(held_out)
        if group.is_main:
            print(f"negative ELBO of held-out images: {bound:.2f} nats per image")
            if seen:
                draw(seen, bound, arguments.picture)


def draw(seen: list[tuple[int, float]], bound: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6))
    axis.plot(*zip(*seen, strict=True), "o-", label="training")
    axis.axhline(bound, color="C1", label="held out, at the end")
    axis.set(xlabel="step", ylabel="negative ELBO, nats per image")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
