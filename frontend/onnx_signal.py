"""Fourier transforms of ONNX as products with matrices of cosines and sines, and Einsum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]


def _transform(length: int, size: int, sign: int) -> tuple[Any, Any]:
    """Cosines and sines (length, size) of a transform of ``size`` points."""
    angle = 2 * np.pi * np.outer(np.arange(length), np.arange(size)) / size
    return np.cos(angle).astype(np.float32), (sign * np.sin(angle)).astype(np.float32)


def _complex(node: Node, build: Builder, x: Value, matrices: tuple[Any, Any]) -> Value:
    """(…, length, 1 or 2) times a complex matrix, as (…, size, 2)."""
    cosines, sines = matrices
    parts = extents.shape(x)[-1]
    last = extents.rank(x) - 1
    columns = [
        build.squeeze(general.cut(build, x, {last: (i, i + 1)}, f"{node.name}.{i}"), [last],
                      f"{node.name}.{i}.line")
        for i in range(int(parts))  # type: ignore[arg-type]
    ]  # fmt: skip
    real = build.linear(columns[0], cosines, None, f"{node.name}.real")
    imaginary = build.linear(columns[0], sines, None, f"{node.name}.imaginary")
    if len(columns) == 2:
        real = node.op("Sub", real, build.linear(columns[1], sines, None, f"{node.name}.cross"))
        imaginary = node.op(
            "Add", imaginary, build.linear(columns[1], cosines, None, f"{node.name}.turn")
        )
    pair = [build.unsqueeze(v, [last], f"{node.name}.part") for v in (real, imaginary)]
    return build.concat(pair, last, node.name)


def _dft(node: Node, build: Builder) -> Value:
    x, rank = node.input(0), extents.rank(node.input(0))
    given = node.attr("axis", 1) if node.opset < 20 else int(node.scalar(2) or -2)
    axis, inverse = given % rank, node.attr("inverse", 0)
    length = extents.shape(x)[axis]
    size = int(node.scalar(1) or length)  # type: ignore[arg-type]
    if node.attr("onesided", 0) and inverse:
        raise Refused("inverts a one-sided transform")
    x = general.cut(build, x, {axis: (0, min(size, int(length)))}, f"{node.name}.part")  # type: ignore[arg-type]
    cosines, sines = _transform(int(extents.shape(x)[axis]), size, 1 if inverse else -1)  # type: ignore[arg-type]
    kept = size // 2 + 1 if node.attr("onesided", 0) else size
    scale = np.float32(1 / size if inverse else 1)
    order = [a for a in range(rank - 1) if a != axis] + [axis, rank - 1]
    turned = build.transpose(x, order, f"{node.name}.order")
    matrices = cosines[:, :kept] * scale, sines[:, :kept] * scale
    y = _complex(node, build, turned, matrices)
    return build.transpose(y, np.argsort(order).tolist(), f"{node.name}.back")


def _stft(node: Node, build: Builder) -> Value:
    x, step, window = node.input(0), node.scalar(1), node.constant(2)
    size = node.scalar(3) or (None if window is None else float(len(window)))
    if step is None or size is None:
        raise Refused("needs a window or a frame_length")
    length, frame = int(extents.shape(x)[1]), int(size)  # type: ignore[arg-type]
    starts = np.arange(0, length - frame + 1, int(step))
    places = starts[:, None] + np.arange(frame)
    frames = general.take(build, x, places, 1, f"{node.name}.frames")
    if extents.rank(frames) == 3:
        frames = build.unsqueeze(frames, [3], f"{node.name}.real")
    cosines, sines = _transform(frame, frame, -1)
    kept = frame // 2 + 1 if node.attr("onesided", 1) else frame
    shape = np.ones((frame, 1), np.float32) if window is None else window.reshape(-1, 1)
    return _complex(node, build, frames, (cosines[:, :kept] * shape, sines[:, :kept] * shape))


def _einsum(node: Node, build: Builder) -> Value:
    equation = str(node.attrs["equation"]).replace(" ", "")
    dtype = next(dtype_of(v) for v in node.inputs if isinstance(v, relax.Var))
    operands = [build.tensor(value, node.name, dtype) for value in node.inputs]
    return build.emit(relax.op.einsum(tuple(operands), equation), node.name)


SIGNAL: dict[str, Convert] = {"DFT": _dft, "Einsum": _einsum, "STFT": _stft}
"""Operators by name."""
