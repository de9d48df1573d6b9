"""Calibration data in the forms that users have it, as batches by input name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nybble.errors import CalibrationError
from nybble.ir import graph
from nybble.model import Model

Array = NDArray[Any]
Batch = Array | Mapping[str, Array]


def batches(model: Model, calibration: Iterable[Batch]) -> Iterator[dict[str, Array]]:
    """Each calibration item as {input: array with a batch axis}."""
    params, given = graph.inputs(model.module), cast("Any", calibration)
    if not isinstance(given, Iterable) or isinstance(given, Mapping | str):
        raise CalibrationError(
            f"The calibration data is a {type(calibration).__name__}; give an iterable of arrays, "
            "or of {input: array}: [array] for a single batch."
        )
    for index, item in enumerate(calibration):
        if not isinstance(item, Mapping) and len(params) > 1:
            names = [str(p.name) for p in params]
            raise CalibrationError(f"The model has {len(params)} inputs: give {{input: array}} "
                                   f"with the names {names}.")  # fmt: skip
        named = item if isinstance(item, Mapping) else {str(params[0].name): item}
        arrays = {name: _array(value, f"batch {index}, input '{name}'")
                  for name, value in named.items()}  # fmt: skip
        batch = {name: _with_batch_axis(array, name, params) for name, array in arrays.items()}
        yield from _cut(batch, params)


def _array(value: Any, where: str) -> Array:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        advice = ""
        if isinstance(value, list | tuple):
            advice = " Leave labels out: (images for images, labels in loader)."
        raise CalibrationError(
            f"Calibration {where}: not readable as an array: {error}.{advice}"
        ) from error


def _with_batch_axis(array: Array, name: str, params: Sequence[Any]) -> Array:
    rank = next((len(graph.shape_of(p)) for p in params if p.name == name), array.ndim)
    return array[None] if array.ndim == rank - 1 else array


def _cut(batch: dict[str, Array], params: Sequence[Any]) -> Iterator[dict[str, Array]]:
    """Slices of the batch size that the model fixes; the batch itself where it fixes none."""
    sizes = {size for p in params for size in graph.shape_of(p)[:1]}
    lengths = {length for array in batch.values() for length in array.shape[:1]}
    size, length = next(iter(sizes), None), next(iter(lengths), 0)
    if len(sizes) != 1 or len(lengths) != 1 or not isinstance(size, int) or length % size:
        yield batch
        return
    for start in range(0, length, size):
        yield {name: array[start : start + size] for name, array in batch.items()}


def count(model: Model, calibration: Iterable[Batch]) -> int | None:
    """How many samples the calibration data holds; None for a stream."""
    if not isinstance(calibration, Sequence | np.ndarray):
        return None
    given = batches(model, calibration)
    return sum(max((len(a) for a in batch.values() if a.ndim), default=0) for batch in given)
