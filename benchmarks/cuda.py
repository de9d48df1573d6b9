"""Kernels for GPUs, packed here for a machine with a GPU and no network, checked and timed there.

    python -m benchmarks.cuda pack kernels.tar.xz --target cuda:sm_90 --python 3.12
    python3 -m tarfile -e kernels.tar.xz . && python3 kernels/run.py --limit 9m       # there
    python -m benchmarks.cuda show kernels/results.json     # a table, and a plot beside the file

Where the machine that packs has the GPU itself, ``run kernels.tar.xz`` does what is to be done
there. ``--python`` names the Python of the other machine: the runtime's binding is compiled for one
version.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.cuda_pack import HERE, Wish, pack
from benchmarks.cuda_show import show
from benchmarks.output import console
from nybble.errors import NybbleError


def unpacked(archive: Path) -> Path:
    """The archive's folder, beside it; what is there already stays."""
    if archive.is_dir():
        return archive
    home = archive.parent / archive.name.partition(".")[0]
    if not (home / "kernels" / "run.py").exists():
        with tarfile.open(archive) as file:
            file.extractall(home, filter="data")
    return home / "kernels"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    packing = commands.add_parser("pack", help="compile and write the archive")
    packing.add_argument("archive", type=Path, help="kernels.tar.xz, or .tar.gz")
    packing.add_argument("--target", default="cuda:sm_90")
    packing.add_argument("--rows", default="*", help="pattern of layers' names")
    packing.add_argument("--kernels", default="*", help="pattern of kernels' names")
    packing.add_argument(
        "--network", type=Path, action="append", default=[],
        help="a saved library with variants for the GPU and for this CPU; may be repeated",
    )  # fmt: skip
    packing.add_argument("--no-resnet", action="store_true", help="without ResNet-50")
    packing.add_argument("--python", default=HERE, help="the other machine's Python, 3.12")
    packing.add_argument("--most", type=float, default=60, help="MiB of the archive, at most")
    running = commands.add_parser("run", help="check and time an archive on this machine")
    running.add_argument("archive", type=Path, help="or its folder; see run.py --help")
    showing = commands.add_parser("show", help="a table and a plot of results")
    showing.add_argument("results", type=Path, help="results.json")
    return parser


def main() -> None:
    """Reads the command line."""
    args, more = _parser().parse_known_args()
    if more and args.command != "run":
        _parser().error(f"unrecognized arguments: {' '.join(more)}")
    if args.command == "show":
        show(args.results)
    elif args.command == "run":
        command = [sys.executable, str(unpacked(args.archive) / "run.py"), *more]
        raise SystemExit(subprocess.run(command, check=False).returncode)
    else:
        wish = Wish(
            args.archive, args.target, args.rows, args.kernels, tuple(args.network),
            not args.no_resnet, args.python, args.most,
        )  # fmt: skip
        try:
            pack(wish)
        except NybbleError as error:
            console.print(str(error), style="red", highlight=False)
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
