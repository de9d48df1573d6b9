"""What a caller says of open sizes: shapes by the name of an input, or by a pattern of names.

    {"ids": (None, "length"), "past_*": (None, 4, "past", 64), "mask": (None, "past + length")}

None is the batch, a name an extent that stays open, a sum what other inputs' sizes make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import reduce
from operator import add
from typing import Any

import tvm

from nybble.errors import ImportModelError

BATCH = "batch"
Shape = Sequence[int | str | None]
Shapes = Mapping[str, Shape]


def by_input(shapes: Shapes | None, names: Sequence[str], owner: str) -> dict[str, Shape]:
    """The shape that is given for each input: under its own name, else by the first pattern.

    Args:
        shapes: by names, or patterns such as ``past_*``.
        names: of all inputs.
        owner: who has them, for the error.

    Raises:
        ImportModelError: a name or pattern that stands for no input.
    """
    given = shapes or {}
    unknown = [key for key in given if not any(_stands_for(key, name) for name in names)]
    if unknown:
        raise ImportModelError(f"shapes: no inputs {unknown}; {owner} {', '.join(names)}.")
    found = {}
    for name in names:
        fitting = [key for key in given if _stands_for(key, name)]
        if fitting:
            found[name] = given[name if name in given else fitting[0]]
    return found


def _stands_for(key: str, name: str) -> bool:
    return key == name or fnmatchcase(name, key)


def addends(size: str | None) -> list[str]:
    """The names that an open extent is the sum of: mostly one."""
    return [BATCH] if size is None else [name.strip() for name in size.split("+")]


def expressions(symbols: dict[str, Any], shape: Shape) -> list[Any]:
    """A shape as Relax takes it: each name is one variable, which ``symbols`` keeps."""
    return [size if isinstance(size, int) else total(symbols, size) for size in shape]


def total(symbols: dict[str, Any], size: str | None) -> Any:
    """An open extent as TIR."""
    variables = [symbols.setdefault(n, tvm.tirx.Var(n, "int64")) for n in addends(size)]
    return reduce(add, variables)


def check_sums(shapes: Mapping[str, Shape]) -> None:
    """Refuses sums of names that are no input's own extent: nothing would tell their parts.

    Args:
        shapes: of all inputs that leave something open.

    Raises:
        ImportModelError: names the part.
    """
    open_ = [(name, addends(size)) for name, shape in shapes.items() for size in shape
             if not isinstance(size, int)]  # fmt: skip
    alone = {parts[0] for _, parts in open_ if len(parts) == 1}
    for name, parts in open_:
        lost = [part for part in parts if part not in alone]
        if lost:
            raise ImportModelError(
                f"Input '{name}': {' + '.join(parts)} cannot be told apart: no input has "
                f"{' or '.join(map(repr, lost))} as an extent of its own."
            )
