"""Convolutions and linear layers as products: rows of inputs times weights, groups apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nybble.ir import graph
from nybble.passes.settle import rows_of
from nybble.passes.view import View


@dataclass(frozen=True)
class Product:
    """How a layer's outputs are computed from rows.

    Attributes:
        pixels: outputs of one sample, channels apart.
        groups: of the convolution; 1 for a linear layer.
        shape: (O, KH, KW, C / groups) or (O, K) of the weights.
        window: strides, padding, dilation and output extents of a convolution; None for a linear
            layer.
    """

    pixels: int
    groups: int
    shape: tuple[int, ...]
    window: dict[str, Any] | None

    @property
    def depth(self) -> int:
        """Weights of one output."""
        return int(np.prod(self.shape[1:]))

    def weights(self, rows: NDArray[Any]) -> Tensor:
        """(O, …) weights as (groups, O / groups, depth)."""
        return torch.from_numpy(np.array(rows).reshape(self.groups, -1, self.depth))

    def unfolded(self, weights: Tensor) -> NDArray[Any]:
        """What `weights` made, as (O, …) again."""
        return np.ascontiguousarray(weights.detach().numpy().reshape(self.shape))

    def rows(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Inputs of some outputs.

        Args:
            x: (N, H, W, C) or (N, …, K).
            chosen: (N, P) indices of outputs in 0 .. pixels - 1, for every sample.

        Returns:
            (N * P, groups, depth), in the order of `weights`.
        """
        sample = torch.arange(len(x)).reshape(-1, 1)
        if self.window is None:
            return x.reshape(len(x), self.pixels, -1)[sample, chosen].reshape(-1, 1, self.depth)
        top, left, bottom, right = self.window["padding"]
        x = F.pad(x, (0, 0, left, right, top, bottom))
        (down, across), (dy, dx) = self.window["strides"], self.window["dilation"]
        height, width = self.shape[1:3]
        y = (chosen // self.window["extent"] * down).reshape(-1, 1, 1)
        z = (chosen % self.window["extent"] * across).reshape(-1, 1, 1)
        y = y + dy * torch.arange(height).reshape(-1, 1)
        z = z + dx * torch.arange(width)
        which = sample.expand(chosen.shape).reshape(-1, 1, 1)
        patches = x[which, y, z].reshape(chosen.numel(), height, width, self.groups, -1)
        return patches.permute(0, 3, 1, 2, 4).reshape(chosen.numel(), self.groups, self.depth)

    def times(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Outputs (R, O) of rows (R, groups, depth) and weights (groups, O / groups, depth)."""
        if self.groups == 1:
            return rows[:, 0] @ weights[0].T
        if weights.shape[1] == 1:  # depthwise
            return torch.einsum("rgk,gk->rg", rows, weights[:, 0])
        product = torch.bmm(rows.transpose(0, 1), weights.transpose(1, 2))
        return product.transpose(0, 1).reshape(len(rows), -1)


def product_of(view: View, name: str) -> Product:
    """The product that a convolution or linear layer computes; its image size must be static."""
    call = view.calls[name]
    shape = tuple(int(extent) for extent in rows_of(call).shape)
    outputs = [int(extent) for extent in view.shape(name)[1:-1]]
    pixels = int(np.prod(outputs)) if outputs else 1
    if graph.op_name(call) != "relax.nn.conv2d":
        return Product(pixels, 1, shape, None)
    attributes = graph.attributes(call)
    window = {key: attributes[key] for key in ("strides", "padding", "dilation")}
    window["extent"] = outputs[1]
    return Product(pixels, int(attributes["groups"]), shape, window)


def choose(samples: int, pixels: int, rows: int, generator: torch.Generator) -> Tensor:
    """Random outputs of every sample, none twice: (samples, P), about ``rows`` in all."""
    each = min(pixels, max(1, -(-rows // samples)))
    keys = torch.rand((samples, pixels), generator=generator)
    return keys.argsort(dim=1)[:, :each].contiguous()


def outputs_at(y: Tensor, chosen: Tensor) -> Tensor:
    """A tensor (N, …, O) at some outputs of every sample, (N * P, O)."""
    flat = y.reshape(len(y), -1, y.shape[-1])
    return flat[torch.arange(len(y)).reshape(-1, 1), chosen].reshape(-1, y.shape[-1])
