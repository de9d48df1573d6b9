"""Convolutions, matrix products, batch norm and pools of ONNX.

What has one spatial axis becomes an image of one row, so that it meets the kernels of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused, Window
from nybble.frontend.onnx_node import Node
from nybble.frontend.stored import Stored

Convert = Callable[[Node, Builder], Value]


# ---------------------------------------------------------------- one row


def _as_image(convert: Convert) -> Convert:
    """The converter of images, also for sequences (N, C, L): they become (N, C, 1, L)."""

    def converted(node: Node, build: Builder) -> Value:
        if extents.rank(node.input(0)) != 3:
            return convert(node, build)
        inputs = list(node.inputs)
        inputs[0] = build.unsqueeze(inputs[0], [2], f"{node.name}.image")
        if len(inputs) > 1 and node.proto.op_type in ("Conv", "ConvTranspose"):
            inputs[1] = _with_row(build, inputs[1], f"{node.name}.weight")
        image = replace(node, inputs=inputs, attrs=_of_images(node.attrs))
        return build.squeeze(convert(image, build), [2], f"{node.name}.row")

    return converted


def _with_row(build: Builder, weight: Value, name: str) -> Value:
    if isinstance(weight, relax.Var):
        return build.unsqueeze(weight, [2], name)
    shape = (*weight.shape[:2], 1, *weight.shape[2:])
    return weight.reshaped(shape, weight.affine.axis) if isinstance(weight, Stored) else (
        weight.reshape(shape)
    )  # fmt: skip


def _of_images(attrs: dict[str, Any]) -> dict[str, Any]:
    found = dict(attrs)
    for key, neutral in (
        ("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("output_shape", 1),
        ("output_padding", 0),
    ):  # fmt: skip
        if key in attrs:
            found[key] = [neutral, *attrs[key]]
    if "pads" in attrs:
        begin, end = attrs["pads"]
        found["pads"] = [0, begin, 0, end]
    return found


def _window(node: Node, size: Sequence[int]) -> Window:
    """Strides, padding (explicit or auto_pad) and dilation of a convolution or pooling."""
    attrs, ones = node.attrs, (1,) * len(size)
    window = Window(
        tuple(size),
        tuple(attrs.get("strides", ones)),
        tuple(attrs.get("pads", (0,) * 2 * len(size))),
        tuple(attrs.get("dilations", ones)),
        bool(attrs.get("ceil_mode", 0)),
    )
    mode = attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        if min(window.padding) < 0:
            raise Refused("negative padding is not supported")
        return window
    sizes = extents.shape(node.input(0))[2:]
    if mode == "VALID":
        padding = (0,) * 2 * len(size)
    elif mode in {"SAME_UPPER", "SAME_LOWER"}:
        padding = window.same_padding(*sizes, upper=mode == "SAME_UPPER")
    else:
        raise Refused(f"auto_pad '{mode}' is unknown")
    return replace(window, padding=padding)


# ---------------------------------------------------------------- convolutions


def _conv(node: Node, build: Builder) -> Value:
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    size = extents.shape(weight)[2:]
    if extents.rank(x) != len(size) + 2 or len(size) not in (2, 3):
        raise Refused("only convolutions over one to three axes are supported")
    if list(node.attrs.get("kernel_shape", size)) != size:
        raise Refused(f"kernel_shape {node.attrs['kernel_shape']} is not that of the weights")
    window = _window(node, size)  # type: ignore[arg-type]
    attrs = {
        "strides": window.strides, "padding": window.padding,
        "dilation": window.dilation, "groups": node.attrs.get("group", 1),
    }  # fmt: skip
    is_constant = not isinstance(weight, relax.Var) and not isinstance(bias, relax.Var)
    if len(size) == 2 and is_constant and isinstance(x, relax.Var):
        return build.conv2d([x, weight, bias], attrs, node.name)
    convolve = relax.op.nn.conv2d if len(size) == 2 else relax.op.nn.conv3d
    call = convolve(build.tensor(x, node.name), build.tensor(weight, node.name), **attrs)
    result = build.emit(call, node.name)
    if bias is None:
        return result
    column = node.op("Reshape.column", bias, np.array([-1, *[1] * len(size)]))
    return build.binary("add", result, column, f"{node.name}.bias")


def _conv_transpose(node: Node, build: Builder) -> Value:
    """A convolution with one result for each phase of the stride, then the phases side by side.

    With o + begin = q·s + r and k = j·s + r:  y[o] = Σ_i x[i]·w[o + begin - i·s]
                                                    = Σ_j x[q - j]·w[j·s + r]
    """
    x, weight, bias = node.input(0), node.constant(1), node.constant(2)
    if extents.rank(x) != 4 or weight is None:
        raise Refused("only transposed convolutions over one or two axes are supported")
    weight = np.asarray(weight)
    strides = tuple(node.attrs.get("strides", (1, 1)))
    spread = _spread(weight, tuple(node.attrs.get("dilations", (1, 1))))
    image = extents.shape(x)[2:]
    begins, sizes = _transposed_window(node, image, spread.shape[2:], strides)
    phases, taps = _phases(spread, strides, node.attrs.get("group", 1))
    padding = [tap - 1 for tap in taps] * 2
    window = {"strides": (1, 1), "padding": padding, "dilation": (1, 1),
              "groups": node.attrs.get("group", 1)}  # fmt: skip
    grown = [(n + tap - 1) * s for n, tap, s in zip(image, taps, strides, strict=True)]
    gaps = [b + n - g for b, n, g in zip(begins, sizes, grown, strict=True)]
    short = [max(0, gap) if isinstance(gap, int) else 0 for gap in gaps]
    if bias is not None and any(short):  # an output padding that no window reaches
        bare = replace(node, inputs=[x, weight])
        column = np.asarray(bias).reshape(-1, 1, 1)
        return build.binary("add", _conv_transpose(bare, build), column, f"{node.name}.bias")
    repeated = None if bias is None else np.repeat(np.asarray(bias), strides[0] * strides[1])
    y = build.conv2d([x, phases, repeated], window, node.name)
    y = shuffled(build, y, strides, f"{node.name}.phases")
    y = build.pad(y, (0, 0, 0, 0, 0, short[0], 0, short[1]), 0.0, f"{node.name}.pad")
    if not any(begins) and sizes == grown:
        return y
    ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
    return general.cut(
        build,
        y,
        dict(zip((2, 3), zip(begins, ends, strict=True), strict=True)),
        f"{node.name}.crop",
    )


def _spread(weight: Any, dilation: tuple[int, int]) -> Any:
    """The weights with the zeros that a dilation stands for."""
    if dilation == (1, 1):
        return weight
    size = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    spread = np.zeros((*weight.shape[:2], *size), weight.dtype)
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread


def _phases(weight: Any, strides: Sequence[int], groups: int) -> tuple[Any, list[int]]:
    """(C, O/g, KH, KW) as weights (O·s·s, C/g, taps, taps) of an ordinary convolution."""
    inside, outside, *size = weight.shape
    taps = [-(-k // s) for k, s in zip(size, strides, strict=True)]
    missing = [(0, t * s - k) for t, s, k in zip(taps, strides, size, strict=True)]
    full = np.pad(weight, [(0, 0), (0, 0), *missing])
    down, across = strides
    split = full.reshape(groups, inside // groups, outside, taps[0], down, taps[1], across)
    split = split[:, :, :, ::-1, :, ::-1, :].transpose(0, 2, 4, 6, 1, 3, 5)
    shape = (groups * outside * down * across, inside // groups, *taps)
    return np.ascontiguousarray(split.reshape(shape)), taps


def shuffled(build: Builder, x: Value, strides: Sequence[int], name: str) -> Value:
    """(N, C·s·s, H, W) to (N, C, H·s, W·s): the s·s channels of a pixel become its neighbours."""
    down, across = strides
    if (down, across) == (1, 1):
        return x
    n, channels, height, width = extents.shape(x)
    split = [n, channels // (down * across), down, across, height, width]
    x = build.reshape(x, split, f"{name}.split")
    x = build.transpose(x, (0, 1, 4, 2, 5, 3), f"{name}.order")
    return build.reshape(x, [n, split[1], height * down, width * across], f"{name}.join")


def _transposed_window(
    node: Node, image: Sequence[Any], reach: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[Any]]:
    """What is cut off at the start, and the extents of the result."""
    extra = node.attrs.get("output_padding", (0, 0))
    full = [(n - 1) * s + k for n, s, k in zip(image, strides, reach, strict=True)]
    mode, pads = node.attrs.get("auto_pad", "NOTSET"), node.attrs.get("pads", (0, 0, 0, 0))
    wanted = node.attrs.get("output_shape")
    if mode in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        wanted = [n * s for n, s in zip(image, strides, strict=True)]
    if wanted is None:
        return list(pads[:2]), [f - pads[i] - pads[i + 2] + extra[i] for i, f in enumerate(full)]
    wanted = list(wanted)[-2:]
    total = [f + e - w for f, e, w in zip(full, extra, wanted, strict=True)]
    if any(not isinstance(t, int) or t < 0 for t in total):
        raise Refused(f"asks for the extents {wanted}, which its windows do not reach")
    begins = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]
    return begins, wanted


# ---------------------------------------------------------------- products


def _gemm(node: Node, build: Builder) -> Value:
    x, weight, bias = node.inputs[0], node.inputs[1], node.input(2)
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if node.attrs.get("transA", 0):
        x = node.op("Transpose.transpose", x, perm=[1, 0])
    if node.attrs.get("transB", 0):
        is_var = isinstance(weight, relax.Var)
        weight = node.op("Transpose.transpose", weight, perm=[1, 0]) if is_var else weight.T
    if alpha != 1:
        is_var = isinstance(weight, relax.Var)
        weight = (
            node.op("Mul.alpha", weight, float(alpha)) if is_var
            else np.asarray(weight) * np.float32(alpha)
        )  # fmt: skip
    if bias is not None and beta != 1:
        bias = node.op("Mul.beta", bias, float(beta))
    if isinstance(bias, np.ndarray) and prod(bias.shape[:-1]) == 1:
        bias = np.broadcast_to(bias.reshape(-1), (extents.shape(weight)[1],))  # type: ignore[arg-type]
    if isinstance(x, relax.Var) and not isinstance(weight, relax.Var):
        return build.linear(x, weight, bias, node.name)
    product = general.matmul(build, x, weight, node.name)
    return product if bias is None else build.binary("add", product, bias, f"{node.name}.bias")


def _matmul(node: Node, build: Builder) -> Value:
    x, weight = node.inputs
    is_weight = not isinstance(weight, relax.Var) and weight.ndim == 2
    if is_weight and isinstance(x, relax.Var) and extents.rank(x) > 1:
        return build.linear(x, weight, None, node.name)
    return general.matmul(build, x, weight, node.name)


def _batch_norm(node: Node, build: Builder) -> Value:
    if node.attrs.get("training_mode", 0):
        raise Refused("is in training mode; export the network in eval mode")
    if not node.attrs.get("spatial", 1):
        raise Refused("spatial=0 is not supported")
    x, moments = node.input(0), node.inputs[1:5]
    epsilon = node.attrs.get("epsilon", 1e-5)
    if not any(isinstance(moment, relax.Var) for moment in moments):
        return build.batch_norm(x, list(moments), epsilon, node.name)
    column = np.array([-1] + [1] * (extents.rank(x) - 2))
    scale, shift, mean, variance = (node.op("Reshape.column", m, column) for m in moments)
    spread = node.op("Sqrt.spread", node.op("Add.epsilon", variance, float(epsilon)))
    normal = node.op("Div.normal", node.op("Sub.centred", x, mean), spread)
    return build.binary("add", node.op("Mul.scale", normal, scale), shift, node.name)


# ---------------------------------------------------------------- pools


def _pool_window(node: Node) -> Window:
    if len(node.attrs["kernel_shape"]) != extents.rank(node.input(0)) - 2:
        raise Refused(f"kernel_shape {node.attrs['kernel_shape']} is not that of its image")
    return _window(node, node.attrs["kernel_shape"])


def _max_pool(node: Node, build: Builder) -> Value:
    if extents.rank(node.input(0)) == 5:
        return general.pool3d(build, "max", node.input(0), _pool_window(node), False, node.name)
    return build.max_pool2d(node.input(0), _pool_window(node), node.name)


def _average_pool(node: Node, build: Builder) -> Value:
    counted = bool(node.attrs.get("count_include_pad", 0))
    if extents.rank(node.input(0)) == 5:
        return general.pool3d(build, "avg", node.input(0), _pool_window(node), counted, node.name)
    return build.avg_pool2d(node.input(0), _pool_window(node), counted, node.name)


def _lp_pool(node: Node, _build: Builder) -> Value:
    """(Σ |x|^p)^(1/p) over windows."""
    p = float(node.attrs.get("p", 2))
    attrs = {k: v for k, v in node.attrs.items() if k != "p"}
    if attrs.get("ceil_mode", 0):
        raise Refused("ceil_mode=1 is not supported")
    powers = node.op("Pow.powers", node.op("Abs", node.input(0)), p)
    mean = node.op("AveragePool.mean", powers, count_include_pad=1, **attrs)
    total = node.op("Mul.total", mean, float(prod(attrs["kernel_shape"])))
    return node.op("Pow.root", total, 1 / p)


def _global_pool(reduction: str) -> Convert:
    def convert(node: Node, _build: Builder) -> Value:
        axes = np.arange(2, extents.rank(node.input(0)))
        return node.op(reduction, node.input(0), axes)

    return convert


def _global_average_pool(node: Node, build: Builder) -> Value:
    axes = range(2, extents.rank(node.input(0)))
    return build.mean(node.input(0), axes, True, node.name)


LAYERS: dict[str, Convert] = {
    "AveragePool": _as_image(_average_pool),
    "BatchNormalization": _batch_norm,
    "Conv": _as_image(_conv),
    "ConvTranspose": _as_image(_conv_transpose),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_pool("ReduceMax"),
    "LpPool": _as_image(_lp_pool),
    "MatMul": _matmul,
    "MaxPool": _as_image(_max_pool),
}
