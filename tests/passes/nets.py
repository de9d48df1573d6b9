"""Small float modules built by hand, as an importer would leave them: NCHW, names, constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from nybble.ir import graph, tvm

nn = relax.op.nn
BATCH = tvm.tirx.Var("n", "int64")


class Net:
    """Emits layers one after another; weights come from a fixed seed."""

    def __init__(self, *shape: int, inputs: tuple[str, ...] = ("x",), seed: int = 0):
        kind = relax.TensorType((BATCH, *shape), "float32")
        self.params = [relax.Var(name, kind) for name in inputs]
        self.emitter = graph.Emitter(self.params)
        self.random = np.random.default_rng(seed)

    @property
    def x(self) -> Any:
        return self.params[0]

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Any:
        values = self.random.standard_normal(shape) * scale + shift
        return graph.constant(values.astype(np.float32))

    def emit(self, name: str, expr: Any) -> Any:
        return self.emitter.emit(expr, name)

    def conv(
        self, name: str, x: Any, out: int, size: Any = 3, groups: int = 1, **attrs: Any
    ) -> Any:
        kh, kw = (size, size) if isinstance(size, int) else size
        channels = extent(x, 1) // groups
        w = self.normal(out, channels, kh, kw, scale=(channels * kh * kw) ** -0.5)
        return self.emit(name, nn.conv2d(x, w, groups=groups, **attrs))

    def bias(self, name: str, x: Any) -> Any:
        return self.emit(name, relax.op.add(x, self.normal(1, extent(x, 1), 1, 1)))

    def norm(self, name: str, x: Any) -> Any:
        channels = extent(x, 1)
        scaled = relax.op.multiply(x, self.normal(1, channels, 1, 1, scale=0.2, shift=1))
        return self.bias(f"{name}.shift", self.emit(f"{name}.scale", scaled))

    def linear(self, name: str, x: Any, out: int) -> Any:
        channels = extent(x, -1)
        w = self.normal(channels, out, scale=channels**-0.5)
        product = self.emit(name, relax.op.matmul(x, w))
        return self.emit(f"{name}.bias", relax.op.add(product, self.normal(out)))

    def relu(self, name: str, x: Any) -> Any:
        return self.emit(name, nn.relu(x))

    def done(self, *results: Any) -> Any:
        names = [f"y{index}" for index in range(len(results))]
        return self.emitter.finish(results, names, "float")


def extent(x: Any, axis: int) -> int:
    """A static extent."""
    return int(graph.shape_of(x)[axis])


def names(mod: Any) -> list[str]:
    """Binding names in order."""
    return [str(b.var.name) for b in graph.bindings(mod)]


def op_names(mod: Any) -> list[str]:
    """Op names in order, without the ``relax.`` and ``nn.`` prefixes."""
    return [graph.op_name(b.value).removeprefix("relax.") for b in graph.bindings(mod)]


def call_of(mod: Any, name: str) -> Any:
    """The call bound to ``name``."""
    return next(b.value for b in graph.bindings(mod) if b.var.name == name)


def images(*shape: int, count: int = 3, seed: int = 1) -> Any:
    """(count, *shape) standard normal float32."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, *shape)).astype(np.float32)


def _conv(**attrs: Any) -> Callable[[Net], Any]:
    return lambda net: net.bias("b", net.conv("c", net.x, 8, **attrs))


def _clipped(lo: float, hi: float) -> Callable[[Net], Any]:
    def build(net: Net) -> Any:
        return net.emit("clip", relax.op.clip(net.norm("bn", net.conv("c", net.x, 6)), lo, hi))

    return build


def _residual(both: bool) -> Callable[[Net], Any]:
    def build(net: Net) -> Any:
        a = net.bias("a.bias", net.conv("a", net.x, 8, padding=1))
        b = net.conv("b", net.x, 8, 1) if both else net.x
        return net.relu("relu", net.emit("add", relax.op.add(a, b)))

    return build


def _pooled(pool: Any, **attrs: Any) -> Callable[[Net], Any]:
    return lambda net: net.emit("pool", pool(net.x, **attrs))


def _concat(net: Net) -> Any:
    wide = net.emit("wide", relax.op.multiply(net.x, graph.constant(np.float32(3))))
    a = net.relu("relu", net.conv("c", net.x, 4, padding=1))
    return net.emit("cat", relax.op.concat([a, wide, net.x], 1))


def _rearranged(net: Net) -> Any:
    padded = net.emit("pad", nn.pad(net.x, [0, 0, 0, 0, 1, 0, 2, 1], "constant", 0.0))
    positive = net.relu("relu", padded)
    flat = net.emit("flat", relax.op.reshape(positive, (BATCH, 8, -1)))
    return net.relu("last", net.emit("perm", relax.op.permute_dims(flat, [0, 2, 1])))


LAYERS: dict[str, Callable[[Net], Any]] = {
    "plain": _conv(),
    "padded": _conv(padding=1),
    "asymmetric": _conv(padding=(0, 1, 2, 1), strides=2),
    "dilated": _conv(dilation=2, padding=2),
    "grouped": _conv(groups=4),
    "depthwise": _conv(groups=8, size=(3, 5)),
    "pointwise": _conv(size=1),
    "relu": lambda net: net.relu("r", net.norm("bn", net.conv("c", net.x, 6))),
    "relu6": _clipped(0.0, 6.0),
    "clip": _clipped(-0.5, 1.25),
    "residual": _residual(both=False),
    "two_branches": _residual(both=True),
    "concat": _concat,
    "rearranged": _rearranged,
    "max_pool": _pooled(nn.max_pool2d, pool_size=3, strides=2, padding=1),
    "max_pool_ceil": _pooled(nn.max_pool2d, pool_size=2, strides=2, ceil_mode=True),
    "avg_pool": _pooled(nn.avg_pool2d, pool_size=2, strides=2),
    "avg_pool_border": _pooled(
        nn.avg_pool2d, pool_size=3, strides=2, padding=1, count_include_pad=False
    ),
    "avg_pool_counted": _pooled(
        nn.avg_pool2d, pool_size=3, strides=2, padding=1, count_include_pad=True
    ),
    "global": lambda net: net.emit("gap", relax.op.mean(net.x, [2, 3], keepdims=False)),
    "global_kept": lambda net: net.emit("gap", relax.op.mean(net.x, [-1, 2], keepdims=True)),
    "adaptive": _pooled(nn.adaptive_avg_pool2d, output_size=(1, 1)),
    "standalone_relu": lambda net: net.relu("r", net.x),
    "post_pool_norm": lambda net: net.norm(
        "bn", net.emit("p", nn.max_pool2d(net.x, pool_size=2, strides=2))
    ),
}
"""Networks of one layer (or one region) on (n, 8, 9, 7) images."""
SHAPE = (8, 9, 7)


def layer(name: str) -> Any:
    """The float module of one row of `LAYERS`."""
    net = Net(*SHAPE)
    return net.done(LAYERS[name](net))
