"""Running sums and the k largest as plain loops; TVM's own take several functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx

from nybble.ir import graph


def _at(index: tuple[Any, ...], axis: int, place: Any) -> tuple[Any, ...]:
    return (*index[:axis], place, *index[axis + 1 :])


def running(x: te.Tensor, axis: int, exclusive: bool, product: bool) -> te.Tensor:
    """Sums or products of everything up to an element (exclusive: before it) along an axis."""
    dtype, neutral = str(x.dtype), tirx.const(1 if product else 0, str(x.dtype))
    combine = te.comm_reducer(
        lambda a, b: a * b if product else a + b,
        lambda t: tirx.const(1 if product else 0, t), name="combine",
    )  # fmt: skip
    k = te.reduce_axis((0, x.shape[axis]), "k")

    def value(*index: Any) -> Any:
        seen = k < index[axis] if exclusive else k <= index[axis]
        return combine(tirx.Select(seen, x(*_at(index, axis, k)), neutral), axis=k)

    return te.compute(x.shape, value, f"running_{dtype}")


def ranks(x: te.Tensor, axis: int, largest: bool) -> te.Tensor:
    """How many elements along an axis come before each: the earlier of equals comes first."""
    k = te.reduce_axis((0, x.shape[axis]), "k")

    def value(*index: Any) -> Any:
        mine, other = x(*index), x(*_at(index, axis, k))
        better = other > mine if largest else other < mine
        before = tirx.any(better, tirx.all(other == mine, k < index[axis]))
        return te.sum(tirx.Select(before, tirx.const(1, "int32"), tirx.const(0, "int32")), axis=k)

    return te.compute(x.shape, value, "ranks")


def topk(x: te.Tensor, k: int, axis: int, largest: bool, places: str | None) -> te.Tensor:
    """Values of the k first, or their positions in the dtype ``places``."""
    rank = ranks(x, axis, largest)
    i = te.reduce_axis((0, x.shape[axis]), "i")
    shape = [*x.shape[:axis], k, *x.shape[axis + 1 :]]
    zero = tirx.const(0, places or str(x.dtype))

    def value(*index: Any) -> Any:
        at = _at(index, axis, i)
        what = x(*at) if places is None else i.astype(places)
        return te.sum(tirx.Select(rank(*at) == index[axis], what, zero), axis=i)

    return te.compute(shape, value, "topk")


def _running(product: bool) -> Callable[[Any, relax.Call], Any]:
    def legalize(builder: Any, call: relax.Call) -> Any:
        attrs = graph.attributes(call)
        axis = int(attrs["axis"]) % len(call.args[0].ty.shape)
        return builder.call_te(running, call.args[0], axis, bool(attrs["exclusive"]), product)

    return legalize


def _topk(builder: Any, call: relax.Call) -> Any:
    x, attrs = call.args[0], graph.attributes(call)
    axis = int(attrs["axis"]) % len(x.ty.shape)
    places = str(attrs["dtype"]) if attrs["ret_type"] == "indices" else None
    return builder.call_te(topk, x, int(attrs["k"]), axis, bool(attrs["largest"]), places)


LEGALIZATIONS: dict[str, Callable[[Any, relax.Call], Any]] = {
    "relax.cumsum": _running(product=False),
    "relax.cumprod": _running(product=True),
    "relax.topk": _topk,
}
"""How these ops become functions, whatever their dtype."""
