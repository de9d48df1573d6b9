"""Problems as plain data, in words, and how far apart two of them are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from math import isinf, log2
from typing import Any

import numpy as np

from nybble.schedules.kernel import Epilogue, Extent, Problem, TensorSpec

DIFFERENT = 0.25  # how far a difference of dtype or epilogue counts, in octaves of an extent
_FLAGS = ("flush", "safe", "tile_flush")


def to_dict(problem: Problem) -> dict[str, Any]:
    """The problem as JSON has it; what is as by default is left out."""
    found: dict[str, Any] = {
        "op": problem.op,
        "inputs": [_spec_to(spec) for spec in problem.inputs],
        "output": _spec_to(problem.output),
    }
    if problem.attrs:
        found["attrs"] = {name: _plain(value) for name, value in problem.attrs}
    if problem.weights is not None:
        found["weights"] = _spec_to(problem.weights)
    if problem.epilogue != Epilogue():
        found["epilogue"] = _epilogue_to(problem.epilogue)
    flags = {name: _plain(getattr(problem, name)) for name in _FLAGS}
    return found | {name: value for name, value in flags.items() if value}


def from_dict(data: Mapping[str, Any]) -> Problem:
    """What `to_dict` gave, read back.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is no problem.
    """
    known = {"op", "inputs", "output", "attrs", "weights", "epilogue", *_FLAGS}
    if not known >= data.keys():
        raise ValueError(f"unknown fields {sorted(data.keys() - known)}")
    flags = {name: data[name] for name in _FLAGS if name in data}
    if not all(isinstance(value, int) for value in flags.values()):
        raise TypeError(f"the flags {flags} are no integers")
    return Problem(
        op=_text(data["op"]),
        inputs=tuple(map(_spec_from, data["inputs"])),
        output=_spec_from(data["output"]),
        attrs=tuple(sorted((k, as_tuples(v)) for k, v in data.get("attrs", {}).items())),
        weights=_spec_from(data["weights"]) if "weights" in data else None,
        epilogue=_epilogue_from(data["epilogue"]) if "epilogue" in data else Epilogue(),
        **flags,
    )


def as_tuples(value: Any) -> Any:
    """A value of JSON with tuples in place of lists."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _spec_to(spec: TensorSpec) -> dict[str, Any]:
    form = {} if spec.form == "values" else {"form": spec.form}
    return {"shape": _plain(spec.shape), "dtype": spec.dtype, **form}


def _spec_from(data: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(data["shape"])
    if not all(isinstance(e, str) or (type(e) is int and e > 0) for e in shape):
        raise ValueError(f"{shape} is no shape")
    form: Any = _text(data.get("form", "values"))
    return TensorSpec(shape, _text(data["dtype"]), form)


def _epilogue_to(epilogue: Epilogue) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(Epilogue):
        value = _plain(getattr(epilogue, field.name))
        if value == field.default and type(value) is type(field.default):
            continue
        if isinstance(value, TensorSpec):
            value = _spec_to(value)
        elif isinstance(value, float) and isinf(value):
            value = str(value)  # JSON knows no infinity
        found[field.name] = value
    return found


def _epilogue_from(data: Mapping[str, Any]) -> Epilogue:
    given = dict(data)
    for bound in ("lo", "hi"):
        if isinstance(given.get(bound), str):
            given[bound] = float(given[bound])
    if given.get("other") is not None:
        given["other"] = _spec_from(given["other"])
    made = Epilogue(**given)
    hash(made)  # what is no scalar is none of an epilogue's
    return made


def renamed(problem: Problem) -> Problem:
    """The problem with its symbolic extents called ``n0``, ``n1``, … in order: models differ."""
    given = [e for spec in problem.tensors for e in spec.shape if isinstance(e, str)]
    names = {name: f"n{i}" for i, name in enumerate(dict.fromkeys(given))}
    if all(name == new for name, new in names.items()):
        return problem

    def spec(one: TensorSpec) -> TensorSpec:
        return replace(one, shape=tuple(names[e] if isinstance(e, str) else e for e in one.shape))

    other = problem.epilogue.other
    return replace(
        problem,
        inputs=tuple(map(spec, problem.inputs)),
        output=spec(problem.output),
        epilogue=replace(problem.epilogue, other=spec(other) if other else None),
    )


def words(problem: Problem) -> str:
    """``conv2d uint8[1, 14, 14, 32] x int4[64, 3, 3, 32] -> uint8[1, 14, 14, 64]``."""
    weights = f" x {_said(problem.weights)}" if problem.weights else ""
    inputs = ", ".join(map(_said, problem.inputs))
    return f"{problem.op} {inputs}{weights} -> {_said(problem.output)}"


def _said(spec: TensorSpec) -> str:
    form = "" if spec.form == "values" else f" {spec.form}"
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]{form}"


# ---------------------------------------------------------------- distance


def distance(one: Problem, other: Problem) -> float | None:
    """How far apart two problems are for a kernel, 0 if they are equal.

    The mean over input and output of the octaves between their extents, and a little for every
    other difference.

    Returns:
        None where one says nothing of the other: another op, window, stride, or symbolic extent.
    """
    if _skeleton(one) != _skeleton(other):
        return None
    pairs = zip(_extents(one), _extents(other), strict=True)
    octaves = sum(abs(log2(a / b)) for a, b in pairs if isinstance(a, int) and isinstance(b, int))
    details = zip(_details(one), _details(other), strict=True)
    return octaves / 2 + DIFFERENT * sum(a != b for a, b in details)


def _skeleton(problem: Problem) -> Any:
    """What must be equal for decisions to mean the same."""
    attrs = {name: v for name, v in problem.attrs if name not in ("pad_value", "padding", "groups")}
    window = problem.weights.shape[1:3] if problem.weights and problem.op == "conv2d" else ()
    tensors = (*problem.inputs[:1], problem.output)
    open_at = tuple(isinstance(extent, str) for spec in tensors for extent in _cut(spec))
    ranks = tuple(len(spec.shape) for spec in tensors)
    return problem.op, len(problem.inputs), ranks, open_at, window, _grouping(problem), attrs


def _grouping(problem: Problem) -> str:
    groups = dict(problem.attrs).get("groups", 1)
    if groups == 1:
        return "dense"
    return "depthwise" if groups == problem.inputs[0].shape[-1] else "grouped"


def _cut(spec: TensorSpec) -> tuple[Extent, ...]:
    """The extents that kernels cut into tasks: of a picture all but the batch."""
    return spec.shape[1:] if len(spec.shape) == 4 else spec.shape


def _extents(problem: Problem) -> list[Extent]:
    return [extent for spec in (problem.inputs[0], problem.output) for extent in spec.shape]


def _details(problem: Problem) -> tuple[Any, ...]:
    """What changes a kernel's code a little."""
    epilogue = problem.epilogue
    given = dict(problem.attrs)
    return (
        problem.inputs[0].dtype, problem.inputs[0].form, problem.output.dtype, problem.output.form,
        problem.weights and problem.weights.dtype, epilogue.kind, epilogue.table, problem.flush,
        problem.safe, problem.tile_flush, given.get("padding"),
    )  # fmt: skip
