"""Linear layers of com.microsoft with stored weights and float activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_node import Node
from nybble.frontend.stored import affine, stored
from nybble.ir import numerics

A, B, SCALES, ZEROS, G_IDX, BIAS = range(6)


def matmul_nbits(node: Node, build: Builder) -> Value:
    """MatMulNBits: x (…, K) times weights of 2, 4 or 8 bits in blocks along K."""
    attrs = node.attrs
    k, n, block = (int(attrs[key]) for key in ("K", "N", "block_size"))
    bits = int(attrs.get("bits", 4))
    if bits not in (2, 4, 8):
        raise Refused(f"bits={bits} is not one of 2, 4, 8")
    packed, blocks = _constant(node, B), -(-k // block)
    if packed.dtype != np.uint8 or packed.size != n * blocks * block * bits // 8:
        raise Refused(f"weights {packed.dtype}{packed.shape} do not fit N={n}, K={k}, bits={bits}")
    _check_order(node.constant(G_IDX), k, block)
    codes = numerics.unpack(packed.reshape(n, -1), blocks * block, f"uint{bits}")[:, :k]
    scale = _constant(node, SCALES).astype(np.float32).reshape(n, blocks)
    zero = _zero_points(node.constant(ZEROS), (n, blocks), bits)
    on = affine(scale.T, zero.T.astype(np.int32), axis=0, block=block)
    weights = stored(codes.T, on, f"uint{bits}")
    return build.linear(node.input(A), weights, node.constant(BIAS), node.name)


def _constant(node: Node, index: int) -> Any:
    value = node.constant(index)
    if value is None:
        raise Refused(f"its operand {index} is missing")
    return np.asarray(value)


def _zero_points(given: Any, shape: tuple[int, int], bits: int) -> Any:
    """(N, blocks) integers: packed row by row, plain, or the middle where none are given."""
    if given is None:
        return np.full(shape, 1 << (bits - 1), np.int32)
    values = np.asarray(given)
    if values.dtype != np.uint8:
        whole = np.rint(values.astype(np.float32))
        if not np.array_equal(whole, values.astype(np.float32)):
            raise Refused("its zero points are no integers")
        return whole.reshape(shape)
    row = -(-shape[1] * bits // 8)
    if values.size != shape[0] * row:
        raise Refused(f"zero points of shape {values.shape} do not fit {shape[1]} blocks")
    return numerics.unpack(values.reshape(shape[0], row), shape[1], f"uint{bits}")


def _check_order(given: Any, k: int, block: int) -> None:
    """Refuses blocks of scattered inputs (GPTQ's act-order)."""
    if given is not None and not np.array_equal(np.asarray(given)[:k], np.arange(k) // block):
        raise Refused("g_idx scatters the inputs of a block; quantize without act-order")


def dynamic_quantize_matmul(node: Node, build: Builder) -> Value:
    """DynamicQuantizeMatMul: x is quantized at run time, the weights have a scale per column."""
    on = affine(_constant(node, 2), node.constant(3), axis=1)
    weights = stored(_constant(node, 1), on)
    if weights.ndim != 2:
        raise Refused(f"weights of shape {weights.shape}; they must be a matrix")
    return build.linear(node.input(0), weights, node.constant(4), node.name)
