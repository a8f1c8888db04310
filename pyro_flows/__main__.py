"""The command line: ``python -m pyro_flows demo | list | info``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: The arguments after the program's name. Default: ``sys.argv[1:]``.
    """
    arguments = build_parser().parse_args(argv)
    return arguments.run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m pyro_flows``."""
    parser = argparse.ArgumentParser(prog="pyro_flows", description="Normalizing flows for Pyro.")
    parser.add_argument("--version", action="version", version=f"pyro_flows {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="fit the eight-schools study, centred and non-centred, and say what to trust")
    demo.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where posterior.nc and posterior.png go")
    demo.add_argument("--seed", type=int, default=0, help="seed of every fit (default 0)")
    demo.add_argument("--quick", action="store_true", help="a few steps only: shows that it runs, not what it finds")
    demo.add_argument("--no-progress", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)

    listing = commands.add_parser("list", help="the flows that a guide or a factory takes by name")
    listing.set_defaults(run=_list)

    info = commands.add_parser("info", help="versions and devices, for a bug report")
    info.set_defaults(run=_info)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    import torch

    from .demo import run_demo

    torch.set_num_threads(1)  # the tensors are small: a second thread costs more than it brings
    run_demo(arguments.out, seed=arguments.seed, quick=arguments.quick, progress=not arguments.no_progress)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from . import flows
    from .flows.table import HEADER

    rows = [HEADER, *flows.table()]
    print(_table(rows))
    print()
    print("cheap direction: forward draws in one pass, inverse scores in one; .inv turns a flow round")
    print("inverse: in closed form, or solved; smoothness: how often the density can be differentiated")
    print("data of other kinds: flows.of_pixels, of_counts, of_exchangeable, of_symmetric; mixtures: distributions.sphere_mixture")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    rows = [("pyro_flows", __version__), ("python", platform.python_version()), ("platform", platform.platform())]
    for package in ("torch", "pyro-ppl", "arviz", "numpy", "torchdiffeq", "safetensors", "matplotlib"):
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows.append(("cuda", ", ".join(devices) or "none"))
    rows.append(("threads", str(torch.get_num_threads())))
    print(_table(rows))
    return 0


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
