"""Calibration samples in batches of one size, however they were given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import tvm
from torch import Tensor

from nybble.ir import graph
from nybble.passes.correction.spool import Spool


class Samples:
    """Samples of a spool, read as often as wanted.

    Args:
        spool: holds them in parts of any length.
        mod: the module that takes them; where it fixes its batch, parts have that length.
        size: samples of a batch, where the module leaves it open.
    """

    def __init__(self, spool: Spool, mod: tvm.IRModule, size: int):
        extents = [graph.shape_of(v)[0] for v in graph.inputs(mod) if graph.shape_of(v)]
        self._fixed = next((e for e in extents if isinstance(e, int)), None)
        self._spool, self._size = spool, self._fixed or size

    def __len__(self) -> int:
        return len(self._spool)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches in order; the last one may be smaller."""
        held: list[dict[str, Tensor]] = []
        for part in self._spool.batches(self._size):
            if self._fixed is not None:
                yield part
                continue
            room = self._size - sum(map(count, held))
            held.append({name: x[:room] for name, x in part.items()})
            if count(part) >= room:
                yield _joined(held)
                held = [{name: x[room:] for name, x in part.items()}] if count(part) > room else []
        if held:
            yield _joined(held)

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """The samples as they came, at most a batch at a time: nothing is checked before."""
        return self._spool.batches(self._size)


def count(batch: dict[str, Tensor]) -> int:
    """Samples of a batch."""
    return len(next(iter(batch.values())))


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
