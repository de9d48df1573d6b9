"""Whether what a manifest's JSON says is of the kinds that a type says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from nybble.errors import ArtifactError

_NO_MANIFEST = "The manifest is damaged, or none of this version of Nybble"
_Fields = tuple[dict[str, Any], frozenset[str]]


def parsed(text: str) -> Any:
    """What a manifest's JSON says.

    Raises:
        ArtifactError: it is no JSON, or nested without end.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"The manifest is not JSON: {error}.") from error


def check(value: Any, kind: Any, where: str) -> None:
    """Refuses what is not of a kind.

    Args:
        value: as ``json.loads`` gives it.
        kind: a dataclass or TypedDict (an object with its fields), a sequence (a list), a mapping,
            a union, ``int``, ``float``, ``str``, ``bool``, None or ``Any``.
        where: what the value is, for the message.

    Raises:
        ArtifactError: says where, and what stands there.
    """
    base, inner = get_origin(kind) or kind, get_args(kind)
    if base in (Union, UnionType):
        if not any(_fits(value, choice, where) for choice in inner):
            raise _alien(value, where)
    elif is_dataclass(kind) or is_typeddict(kind):
        _check_fields(value, kind, where)
    elif not _is(value, base):
        raise _alien(value, where)
    elif isinstance(value, list) and inner:
        for i, entry in enumerate(value):
            check(entry, inner[0], f"{where}[{i}]")
    elif isinstance(value, dict) and inner:
        for name, entry in value.items():
            check(entry, inner[1], f"{where}.{name}")


def _is(value: Any, base: Any) -> bool:
    """Whether a value is a list, an object or a single value as ``base`` says."""
    if base is Any:
        return True
    if isinstance(value, bool | NoneType):
        return base in (type(value), None)  # None stands for its type, and truth is no number
    if base is float:
        return isinstance(value, int | float)
    if not isinstance(base, type):
        return False
    if issubclass(base, str | int):
        return isinstance(value, base)
    wanted = list if issubclass(base, Sequence) else dict if issubclass(base, Mapping) else base
    return isinstance(value, wanted)


def _fits(value: Any, kind: Any, where: str) -> bool:
    try:
        check(value, kind, where)
    except ArtifactError:
        return False
    return True


def _check_fields(value: Any, kind: Any, where: str) -> None:
    known, needed = _fields(kind)
    if not isinstance(value, dict):
        raise _alien(value, where)
    wrong = sorted((needed - value.keys()) | (value.keys() - known.keys()))
    if wrong:
        raise ArtifactError(f"{_NO_MANIFEST}: {where} lacks or adds {', '.join(wrong)}.")
    for name, entry in value.items():
        check(entry, known[name], f"{where}.{name}")


@cache
def _fields(kind: Any) -> _Fields:
    """The types of the fields by name, and the names of those that must be there."""
    known = get_type_hints(kind)
    if is_typeddict(kind):
        marked = get_type_hints(kind, include_extras=True)  # __required_keys__ takes text for all
        return known, frozenset(k for k, v in marked.items() if get_origin(v) is not NotRequired)
    needed = (f.name for f in fields(kind) if f.default is f.default_factory is MISSING)
    return known, frozenset(needed)


def _alien(value: Any, where: str) -> ArtifactError:
    return ArtifactError(f"{_NO_MANIFEST}: {where} is {repr(value)[:60]}.")
