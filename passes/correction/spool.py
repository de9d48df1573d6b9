"""Calibration samples kept for many readings: in memory, beyond a limit on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nybble.errors import CalibrationError

Array = NDArray[Any]
IN_MEMORY = 512 << 20  # bytes


class Spool:
    """Arrays with samples along the first axis, by name; a context that removes its files.

    Args:
        limit: bytes that may stay in memory; later arrays are written to a temporary folder.
    """

    def __init__(self, limit: int = IN_MEMORY):
        self._limit, self._used, self._count = limit, 0, 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._parts: list[dict[str, Array]] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._parts.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __len__(self) -> int:
        """Samples held."""
        return self._count

    def add(self, batch: Mapping[str, Array]) -> None:
        """Keeps a copy of a batch."""
        self._count += len(next(iter(batch.values())))
        self._parts.append({name: self._kept(array) for name, array in batch.items()})

    def passing(self, batches: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """The batches, each kept as it goes by."""
        for batch in batches:
            self.add(batch)
            yield batch

    def batches(self, size: int, most: int | None = None) -> Iterator[dict[str, Tensor]]:
        """The samples in order, ``size`` at a time, ``most`` in all.

        Raises:
            CalibrationError: there are none.
        """
        if not self._parts:
            raise CalibrationError("The calibration data is empty: nothing can be learned from it.")
        left = self._count if most is None else min(most, self._count)
        for part in self._parts:
            length = len(next(iter(part.values())))
            for start in range(0, length, size):
                count = min(size, length - start, left)
                if count <= 0:
                    return
                left -= count
                yield {
                    name: torch.from_numpy(np.array(array[start : start + count]))
                    for name, array in part.items()
                }

    def column(self, name: str) -> Tensor:
        """One array of all batches."""
        return torch.from_numpy(np.concatenate([part[name] for part in self._parts]))

    def _kept(self, array: Array) -> Array:
        self._used += array.nbytes
        if self._used <= self._limit:
            return array.copy()
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="nybble-")
        path = Path(self._folder.name) / f"{self._used}.npy"
        np.save(path, array)
        stored: Array = np.load(path, mmap_mode="r")
        return stored
