"""A tiny library, built with TVM directly, so that these tests need no other room."""

from __future__ import annotations

from typing import Any

import numpy as np

from nybble.ir import tvm
from nybble.runtime import host
from nybble.runtime.manifest import Layer, Manifest, Port


def layer(name: str, symbol: str | None) -> Layer:
    return Layer(
        name=name,
        op="scale",
        output=f"{name}.out",
        dtype="float32",
        form="values",
        symbol=symbol,
        kernel="test.scale",
        weights="float32",
        stored="float32",
        size=16,
        activations="float32",
        macs=4,
        refusals=[],
        timed=[],
    )


def tiny_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "inputs": (Port("x", ("n", 4), "float32"),),
        "outputs": (Port("y", ("n", 4), "float32"),),
        "layers": (layer("first", "scale"), layer("view", None), layer("second", "scale")),
        "target": "x86-64",
        "arch": host.arch(),
        "versions": {"nybble": "0"},
    }
    return Manifest(**{**values, **changes})


def tiny_pair() -> tuple[Any, Manifest]:
    """``2 a`` for a (n, 4) float32 and ``b + 1`` for b (m, 2, n) int32, with awkward names."""
    n, m = tvm.tirx.Var("n", "int64"), tvm.tirx.Var("m", "int64")
    a = tvm.relax.Var("a", tvm.relax.TensorType([n, 4], "float32"))
    b = tvm.relax.Var("b", tvm.relax.TensorType([m, 2, n], "int32"))
    builder = tvm.relax.BlockBuilder()
    with builder.function("main", [a, b]):
        with builder.dataflow():
            results = [
                builder.emit_output(tvm.relax.op.multiply(a, tvm.relax.const(2.0, "float32"))),
                builder.emit_output(tvm.relax.op.add(b, tvm.relax.const(1, "int32"))),
            ]
        builder.emit_func_output(tvm.relax.Tuple(results))
    target = tvm.target.Target({"kind": "llvm", "mtriple": f"{host.arch()}-linux-gnu"})
    manifest = tiny_manifest(
        inputs=(Port('größe/"a"', ("n", 4), "float32"), Port("b", ("m", 2, "n"), "int32")),
        outputs=(Port("double", ("n", 4), "float32"), Port("më\t😀", ("m", 2, "n"), "int32")),
        layers=(),
    )
    return tvm.compile(builder.get(), target), manifest


def tiny_outside(factor: int = 1) -> tuple[Any, list[Any]]:
    """``x * w`` for x (n, 4), which takes w (4,) as a parameter; and the parameters."""
    n = tvm.tirx.Var("n", "int64")
    x = tvm.relax.Var("x", tvm.relax.TensorType([n, 4], "float32"))
    w = tvm.relax.Var("w", tvm.relax.TensorType([4], "float32"))
    builder = tvm.relax.BlockBuilder()
    with builder.function("main", [x, w]):
        with builder.dataflow():
            result = builder.emit_output(tvm.relax.op.multiply(x, w))
        builder.emit_func_output(result)
    target = tvm.target.Target({"kind": "llvm", "mtriple": f"{host.arch()}-linux-gnu"})
    values = np.arange(1, 5, dtype="float32") * factor
    return tvm.compile(builder.get(), target), [values]


def tiny_executable(weights: int = 4, outputs: int = 1, arch: str = "", factor: int = 1) -> Any:
    """``x * w * w`` for x (n, 4), w = factor·(1 2 3 4 …), ``weights`` floats; ``outputs`` times."""
    n = tvm.tirx.Var("n", "int64")
    x = tvm.relax.Var("x", tvm.relax.TensorType([n, 4], "float32"))
    values = np.resize(np.arange(1, 5, dtype="float32") * factor, weights)

    def scale(a: Any, w: Any) -> Any:
        return tvm.te.compute(a.shape, lambda i, j: a[i, j] * w[j], "scale")

    builder = tvm.relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            w = tvm.relax.const(values, "float32")
            first = builder.emit_te(scale, x, w, primfunc_name_hint="scale")
            second = builder.emit_te(scale, first, w, primfunc_name_hint="scale")
            results = [builder.emit_output(second)]
            results += [builder.emit_output(first) for _ in range(outputs - 1)]
        builder.emit_func_output(results[0] if outputs == 1 else tvm.relax.Tuple(results))
    target = tvm.target.Target({"kind": "llvm", "mtriple": f"{arch or host.arch()}-linux-gnu"})
    return tvm.compile(builder.get(), target)


def tiny_cache() -> tuple[Any, Manifest]:
    """``past`` (n, 4) with ``x`` (m, 4) behind it, what ``mask`` (n + m) keeps of both; ``-x``."""
    n, m = tvm.tirx.Var("n", "int64"), tvm.tirx.Var("m", "int64")
    shapes = {"mask": [n + m, 1], "past": [n, 4], "x": [m, 4]}
    params = {k: tvm.relax.Var(k, tvm.relax.TensorType(v, "float32")) for k, v in shapes.items()}
    builder = tvm.relax.BlockBuilder()
    with builder.function("main", list(params.values())):
        with builder.dataflow():
            both = builder.emit_output(tvm.relax.op.concat([params["past"], params["x"]], 0))
            kept = builder.emit_output(tvm.relax.op.multiply(both, params["mask"]))
            new = builder.emit_output(tvm.relax.op.negative(params["x"]))
        builder.emit_func_output(tvm.relax.Tuple([both, kept, new]))
    target = tvm.target.Target({"kind": "llvm", "mtriple": f"{host.arch()}-linux-gnu"})
    manifest = tiny_manifest(
        inputs=(Port("mask", ("n + m", 1), "float32"), Port("past", ("n", 4), "float32"),
                Port("x", ("m", 4), "float32")),
        outputs=(Port("both", ("n + m", 4), "float32"), Port("kept", ("n + m", 4), "float32"),
                 Port("new", ("m", 4), "float32")),
        layers=(),
    )  # fmt: skip
    return tvm.compile(builder.get(), target), manifest
