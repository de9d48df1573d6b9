"""Weights of a linear layer in the order in which few rows use them: one stream of bytes.

    [panel][group]{ scale f32 [vector][lane] | zero point s8 [vector][lane] | codes }
    codes: [unit][vector][bytes], a unit as in `gemv_codes`, a byte for (lane, activation)

A panel is up to four vectors of output channels: four results for each activation that is read.
The last vector, and the last panel, overlap their predecessors, so none is partial; fewer channels
than one vector has are padded with zeros. Each group is padded to whole units, against activations
that are 0 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from nybble.schedules.cpu.gemv_codes import Bytes, Codes
from nybble.schedules.cpu.gemv_dot import Multiply

PANEL = 4  # vectors: as many accumulators as AVX2 holds beside a code and its pieces


@dataclass(frozen=True)
class Layout:
    """Where everything lies.

    Attributes:
        codes: how codes lie in bytes.
        dot: how they are multiplied.
        o: output channels.
        k: weights of a channel.
        group: weights that share a scale.
        head: bytes of a lane before a group's codes: 4 for a scale, 1 for a zero point.
    """

    codes: Codes
    dot: Multiply
    o: int
    k: int
    group: int
    head: int = 0

    @property
    def groups(self) -> int:
        """Groups of a channel."""
        return ceil(self.k / self.group)

    @property
    def unit(self) -> int:
        """Activations that a unit meets."""
        return self.codes.steps * self.dot.depth

    @property
    def units(self) -> int:
        """Units of a group: whole vectors of eight activations, whose sum is needed too."""
        return ceil(self.group / max(self.unit, 8)) * max(self.unit, 8) // self.unit

    @property
    def steps(self) -> int:
        """Steps of a group."""
        return self.units * self.codes.steps

    @property
    def padded(self) -> int:
        """Staged activations of a group."""
        return self.units * self.unit

    @property
    def row(self) -> int:
        """Staged activations of a row."""
        return self.groups * self.padded

    @property
    def vectors(self) -> int:
        """Vectors of output channels."""
        return ceil(self.o / self.dot.lanes)

    @property
    def panel(self) -> int:
        """Vectors of a panel."""
        return min(PANEL, self.vectors)

    @property
    def panels(self) -> int:
        """Panels."""
        return ceil(self.vectors / self.panel)

    @property
    def lead(self) -> int:
        """Bytes before the codes of a group."""
        return self.head * self.panel * self.dot.lanes

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit."""
        return self.panel * self.codes.vectors * self.dot.bytes

    @property
    def record(self) -> int:
        """Bytes of a group."""
        return self.lead + self.units * self.unit_bytes

    @property
    def width(self) -> int:
        """Columns of per-channel tables: at least a vector."""
        return max(self.o, self.dot.lanes)

    def channels(self) -> NDArray[np.int64]:
        """(panels, vectors of a panel, lanes) output channels, those beyond ``o`` padding."""
        first = np.minimum(np.arange(self.panels) * self.panel, self.vectors - self.panel)
        vector = first[:, None] + np.arange(self.panel)
        start = np.minimum(vector * self.dot.lanes, self.width - self.dot.lanes)
        return start[..., None] + np.arange(self.dot.lanes)

    def pack(self, codes: Bytes, *heads: NDArray[np.generic]) -> Bytes:
        """Codes (o, k), and per-group numbers (o, groups) -> (panels, groups · record) bytes."""
        chosen = self.channels()
        padded = np.zeros((self.width, self.groups * self.group), np.uint8)
        padded[: self.o, : self.k] = codes
        grouped = padded.reshape(self.width, self.groups, self.group)
        grouped = np.pad(grouped, ((0, 0), (0, 0), (0, self.padded - self.group)))
        shape = (*chosen.shape, self.groups, self.units, self.codes.steps, self.dot.depth)
        ordered = grouped[chosen].reshape(shape).transpose(0, 3, 4, 1, 5, 2, 6)
        # by panel, group, unit, vector and step now
        flat = ordered.reshape(*ordered.shape[:5], self.dot.bytes)
        stored = self.codes.pack(flat).reshape(self.panels, self.groups, -1)
        fronts = [self._head(values, chosen) for values in heads]
        whole = np.concatenate([*fronts, stored], -1)
        return np.ascontiguousarray(whole.reshape(self.panels, -1))

    def _head(self, values: NDArray[np.generic], chosen: NDArray[np.int64]) -> Bytes:
        padded = np.zeros((self.width, self.groups), values.dtype)
        padded[: self.o] = values
        ordered = np.ascontiguousarray(padded[chosen].transpose(0, 3, 1, 2))
        return ordered.view(np.uint8).reshape(self.panels, self.groups, -1)
