"""ONNX operators as float Relax, by name: opsets 7 and up, and those of com.microsoft."""

from __future__ import annotations

from collections.abc import Callable

from nybble.frontend.build import Builder, Value
from nybble.frontend.onnx_contrib import CONTRIB
from nybble.frontend.onnx_grid import GRID
from nybble.frontend.onnx_index import INDEX
from nybble.frontend.onnx_layers import LAYERS
from nybble.frontend.onnx_math import MATH
from nybble.frontend.onnx_node import Node
from nybble.frontend.onnx_recurrent import RECURRENT
from nybble.frontend.onnx_reduce import REDUCE
from nybble.frontend.onnx_resize import RESIZE
from nybble.frontend.onnx_shape import SHAPES
from nybble.frontend.onnx_signal import SIGNAL

Convert = Callable[[Node, Builder], Value]

CONVERTERS: dict[str, Convert] = {
    **MATH, **SHAPES, **INDEX, **REDUCE, **LAYERS, **RESIZE, **RECURRENT, **SIGNAL,
    **GRID, **CONTRIB,
}  # fmt: skip
"""Operators of other domains than ONNX's own have theirs in front: ``com.microsoft.Gelu``."""
