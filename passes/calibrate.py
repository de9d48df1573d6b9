"""Runs the float module on calibration data and records the range of every tensor to quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from nybble.errors import CalibrationError
from nybble.ir import graph, interpreter
from nybble.passes.observers import MinMax, observer
from nybble.passes.plan import plan
from nybble.recipe import Recipe

Array = NDArray[Any]
Batch = Mapping[str, Array]


@dataclass(frozen=True)
class Ranges:
    """The range (lo, hi) of every observed tensor, by name; zero lies inside."""

    limits: Mapping[str, tuple[float, float]]

    def __getitem__(self, name: str) -> tuple[float, float]:
        """One tensor's range.

        Raises:
            CalibrationError: the tensor was not observed.
        """
        if name not in self.limits:
            raise CalibrationError(
                f"'{name}' has no calibrated range. Calibrate this very module with this recipe."
            )
        return self.limits[name]


def calibrate(
    mod: tvm.IRModule,
    batches: Iterable[Batch],
    recipe: Recipe,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Observes a canonical float module; memory does not grow with the number of batches.

    Args:
        mod: a canonical float module.
        batches: {input name: array}, read once, one at a time; arrays as the module's inputs are
            typed, with any batch extent where it is symbolic.
        recipe: which calibrator, and what stays float.
        progress: called with the number of samples done.

    Raises:
        CalibrationError: there is no batch; an input is missing, unknown, of the wrong shape or
            dtype; a value is NaN or infinite.
    """
    planned = plan(mod, recipe)
    observers = {name: observer(recipe, planned.bits[name]) for name in planned.owners()}
    done = 0
    for index, batch in enumerate(batches):
        _check(mod, batch, index)
        for sample in _samples(mod, batch):
            _observe(mod, sample, observers)
            done += len(next(iter(sample.values())))
            if progress is not None:
                progress(done)
    if done == 0:
        raise CalibrationError(
            "The calibration data is empty. Give at least one batch; 32 to 512 samples are usual."
        )
    return Ranges({name: seen.range() for name, seen in observers.items()})


def _observe(mod: tvm.IRModule, sample: Batch, observers: Mapping[str, MinMax]) -> None:
    def update(name: str, values: Array) -> None:
        if name in observers:
            if values.size == 0:
                raise CalibrationError(
                    f"'{name}' has no elements, shape {values.shape}, so it has no range. "
                    "Check the extents that the model computes."
                )
            if not np.all(np.isfinite(values)):
                raise CalibrationError(
                    f"'{name}' is NaN or infinite on the calibration data, though the inputs are "
                    "finite. The model overflows: check its weights and the inputs' scale."
                )
            observers[name].update(values)

    for name, values in sample.items():
        update(name, values)
    interpreter.run(mod, sample, observe=update)


def _samples(mod: tvm.IRModule, batch: Batch) -> Iterator[Batch]:
    """One image at a time where the batch extent is free: activations of one image fit anywhere."""
    shapes = [graph.shape_of(v) for v in graph.inputs(mod)]
    if not all(shape and isinstance(shape[0], str) for shape in shapes):
        yield batch
        return
    for index in range(len(next(iter(batch.values())))):
        yield {name: values[index : index + 1] for name, values in batch.items()}


def _check(mod: tvm.IRModule, batch: Batch, index: int) -> None:
    """Compares one batch with the module's inputs."""
    params = {str(v.name): v for v in graph.inputs(mod)}
    where = f"Calibration batch {index}"
    if batch.keys() != params.keys():
        raise CalibrationError(
            f"{where}: expected the inputs {sorted(params)}, got {sorted(batch)}."
        )
    symbols: dict[str, int] = {}
    for name, param in params.items():
        _check_array(f"{where}, input '{name}'", batch[name], param, symbols)


def _check_array(where: str, values: Array, param: Any, symbols: dict[str, int]) -> None:
    shape, dtype = graph.shape_of(param), graph.dtype_of(param)
    if str(values.dtype) != dtype:
        raise CalibrationError(
            f"{where}: expected dtype {dtype}, got {values.dtype}. Convert with .astype('{dtype}')."
        )
    fits = len(shape) == values.ndim
    for expected, got in zip(shape, values.shape, strict=False):
        # The same symbol is the same extent in every input.
        wanted = symbols.setdefault(expected, got) if isinstance(expected, str) else expected
        fits = fits and wanted == got
    if not fits:
        raise CalibrationError(f"{where}: expected shape {shape}, got {values.shape}.")
    if values.size == 0:
        raise CalibrationError(f"{where}: the array is empty, shape {values.shape}.")
    if not np.all(np.isfinite(values)):
        bad = int(np.flatnonzero(~np.isfinite(values.reshape(values.shape[0], -1)).all(axis=1))[0])
        raise CalibrationError(f"{where}: sample {bad} holds NaN or infinity.")
