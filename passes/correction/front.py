"""Every calibration sample's tensors at one place of the network, moved on layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nybble.passes.correction.spool import Spool
from nybble.passes.differentiable import Differentiable
from nybble.passes.grids import Grid
from nybble.passes.simulation import fake

LIMIT = 160 << 20  # bytes in memory; two fronts live while one is made from the other
IMAGES = 8  # run together


class Front:
    """What the bindings from one on will read, for all samples: no layer is computed twice.

    Tensors are kept as they were before rounding, so that a grid may still change until the
    binding that reads the tensor is passed.

    Attributes:
        net: the network.
        grids: of the tensors that are rounded; may change.
        swaps: weights and other constants in place of the network's own; may change.
    """

    def __init__(self, net: Differentiable, samples: Spool, size: int):
        self.net, self.size = net, size
        self.grids: dict[str, Grid] = {}
        self.swaps: dict[str, Tensor] = {}
        self._at, self._state, self._owned = 0, samples, False

    def close(self) -> None:
        """Removes what lies on disk."""
        if self._owned:
            self._state.__exit__(None, None, None)

    def advance(self, to: int) -> None:
        """Runs all samples up to a binding, exclusively."""
        if to == self._at:
            return
        live, made = self.net.live(to), Spool(LIMIT)
        with torch.no_grad():
            for values in self._state.batches(self.size):
                made.add(self._moved(values, to, live))
        self.close()
        self._at, self._state, self._owned = to, made, True

    def _moved(self, values: dict[str, Tensor], to: int, live: set[str]) -> dict[str, NDArray[Any]]:
        raw: dict[str, Tensor] = {}

        def rounded(name: str, value: Tensor) -> Tensor | None:
            if name not in self.grids:
                return None
            if name in live:
                raw[name] = value
            return fake(value, self.grids[name])

        if self._at:  # else the inputs are observed
            raw |= {name: value for name, value in values.items() if name in live}
            values = {name: self.rounded(name, value) for name, value in values.items()}
        self.net.advance(values, range(self._at, to), rounded, self.swaps)
        return {name: raw.get(name, values[name]).numpy() for name in values if name in live}

    def rounded(self, name: str, value: Tensor) -> Tensor:
        """A tensor on its grid."""
        return fake(value, self.grids[name]) if name in self.grids else value

    def read(self) -> Iterator[dict[str, Tensor]]:
        """The samples' tensors here, before rounding, batch by batch."""
        return self._state.batches(self.size)
