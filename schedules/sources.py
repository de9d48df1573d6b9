"""What kernels are made by: a measured time holds for the same sources and the same TVM only.

A kernel's sources are the modules of its functions and all that they import from the folders of
kernels. So a new family, or a change of another one, leaves what was measured of this one valid.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache, partial
from importlib.metadata import version
from inspect import getclosurevars, isfunction
from pathlib import Path
from typing import Any

_ROOM = "nybble.schedules."
_HERE = Path(__file__).resolve().parent
_FOLDERS = ("cpu", "cuda")


@cache
def digest(op: str, *names: str) -> str:
    """A hash of the sources of an op's kernels and of TVM's version: 16 hex digits.

    Args:
        op: the anchor.
        names: of kernels; those that the table does not hold add nothing.
    """
    from nybble.schedules import table  # noqa: PLC0415  (holds every kernel; needed here alone)

    files = set[Path]()
    for kernel in (*table.KERNELS, *table.CUDA):
        if kernel.op == op and kernel.name in names:
            for value in vars(kernel).values():
                files |= {file for module in _modules(value) for file in _closure(module)}
    found = hashlib.sha256(version("apache-tvm").encode())
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _modules(value: Any) -> Iterator[str]:
    """The modules that a kernel's field is from: of the function and of what is bound to it."""
    if isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _modules(part)
        return
    if isfunction(value):
        for part in getclosurevars(value).nonlocals.values():
            yield from _modules(part)
    yield value.__module__ if isfunction(value) else type(value).__module__


@cache
def _closure(module: str) -> frozenset[Path]:
    """The file of a module in the folders of kernels, and those of all that it imports there."""
    found, ahead = set[Path](), [module]
    while ahead:
        file = _file(ahead.pop())
        if file is not None and file not in found:
            found.add(file)
            ahead += _imports(file)
    return frozenset(found)


def _file(module: str) -> Path | None:
    """Of a module in the folders of kernels; None for any other name."""
    parts = module.removeprefix(_ROOM).split(".")
    if not module.startswith(_ROOM) or parts[0] not in _FOLDERS:
        return None
    file = _HERE.joinpath(*parts).with_suffix(".py")
    return file if file.exists() else None


def _imports(file: Path) -> Iterator[str]:
    """Full names of what a file imports: modules, and names in them that may be modules."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
