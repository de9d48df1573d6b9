"""The network to be deployed, in torch: what was settled, on whole batches and with gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from nybble.ir import numerics
from nybble.passes.differentiable import Differentiable, Observe
from nybble.passes.grids import Grid
from nybble.passes.settle import Rounded, Settled, channel_axis
from nybble.passes.view import View


class Simulation:
    """Float arithmetic on quantized values: integers deployed later differ by roundings only.

    Attributes:
        net: the float module.
        grids: of every tensor that is rounded.
        weights: of every quantized layer, as floats in the module's layout.
    """

    def __init__(self, settled: Settled, net: Differentiable | None = None):
        self.net = net or Differentiable(settled.module)
        self.grids = settled.points()
        self._axes = {n: channel_axis(c) for n, c in View(settled.module).calls.items()}
        self.weights = {name: self.laid_out(name, r) for name, r in settled.weights.items()}

    def laid_out(self, name: str, rounded: Rounded) -> Tensor:
        """A layer's weights as the module holds them."""
        values = np.moveaxis(rounded.values(), 0, self._axes[name])
        return torch.from_numpy(np.ascontiguousarray(values))

    def __call__(
        self, inputs: Mapping[str, Tensor], observe: Observe | None = None
    ) -> list[Tensor]:
        """The outputs; ``observe`` sees every tensor before its rounding, and may replace it."""

        def rounded(name: str, values: Tensor) -> Tensor:
            seen = observe(name, values) if observe is not None else None
            values = values if seen is None else seen
            return fake(values, self.grids[name]) if name in self.grids else values

        return self.net(inputs, rounded, self.weights)


def fake(values: Tensor, grid: Grid) -> Tensor:
    """Values rounded to a grid, half to even; `numerics.quantize` in torch."""
    if grid.dtype == "int1":  # -1 and +1, no 0 between them
        return torch.where(torch.round(values / grid.scale) < 0, -grid.scale, grid.scale)
    lo, hi = numerics.limits(grid.dtype)
    steps = torch.round(values / grid.scale) + grid.zero_point
    return (torch.clamp(steps, lo, hi) - grid.zero_point) * grid.scale
