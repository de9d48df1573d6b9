"""What a ``.so`` will say of itself: the manifest, read off the module that it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tvm import sym

import nybble
from nybble.ir import graph, numerics, specs
from nybble.recipe import Recipe
from nybble.runtime import manifest
from nybble.runtime.manifest import Manifest, Port
from nybble.schedules import problems
from nybble.schedules.build import Built
from nybble.schedules.cuda import toolkit
from nybble.schedules.cuda.arch import KIND, CudaTarget
from nybble.schedules.lower import Layer
from nybble.schedules.replay import Match
from nybble.schedules.target import Target, host_of

if TYPE_CHECKING:
    import tvm

Border = tuple[float | None, int | None]


def describe(
    mod: tvm.IRModule,
    layers: Iterable[Layer],
    target: Target,
    recipe: Recipe | None,
    rates: Mapping[str, float] | None = None,
    built: Built | None = None,
) -> Manifest:
    """The manifest of a network.

    Args:
        mod: the integer module (or the canonical float one) that was lowered.
        layers: what `lower` chose, in call order.
        target: what it was compiled for.
        recipe: how it was quantized; None for a float model, and for one that was imported so.
        rates: `nybble.limits.multiply_rates`, where layers were measured.
        built: the code, of which a manifest for GPUs tells what it takes.
    """
    attrs = mod["main"].attrs
    kept = attrs.get(specs.KEPT_FLOAT, ())
    return Manifest(
        inputs=tuple(_port(p, str(p.name), _input_border(mod, p)) for p in graph.inputs(mod)),
        outputs=tuple(
            _port(v, name, _output_border(mod, v))
            for v, name in zip(graph.outputs(mod), graph.output_names(mod), strict=True)
        ),
        layers=tuple(map(_layer, layers)),
        target=target.name,
        arch=host_of(target).arch,
        features=tuple(sorted(host_of(target).features)),
        recipe=recipe.as_dict() if recipe else None,
        versions=_versions(),
        rounding=_rounding(mod, recipe),
        kept_float=tuple(map(str, kept)),
        rates=rates,
        float_ops=tuple(f"{name}: {op}" for name, op in specs.between_borders(mod)),
        device=_device(target, built) if isinstance(target, CudaTarget) and built else None,
    )


def _device(target: CudaTarget, built: Built) -> manifest.Device:
    return manifest.Device(
        kind=KIND,
        archs=list(target.machine_codes),
        portable=target.portable,
        toolkit=toolkit.find().version,
        graphed=built.graphed,
        usage=[
            manifest.KernelUse(
                symbol=one.kernel, arch=one.arch, registers=one.registers, spills=one.spills,
                shared=one.shared,
            )
            for one in built.usage
        ],
    )  # fmt: skip


def _rounding(mod: tvm.IRModule, recipe: Recipe | None) -> str | None:
    """The convention of requantization; None for a float model."""
    if graph.stage(mod) != "integer":
        return None
    return recipe.rounding if recipe else numerics.ROUNDINGS[0]


def _layer(layer: Layer) -> manifest.Layer:
    return manifest.Layer(
        name=layer.name,
        op=layer.op,
        output=layer.output,
        dtype=layer.dtype,
        form=layer.form,
        symbol=layer.symbol,
        kernel=layer.kernel,
        weights=layer.weights,
        stored=layer.stored,
        size=layer.size,
        activations=layer.activations,
        macs=layer.macs,
        refusals=list(layer.refusals),
        timed=[
            manifest.Timed(kernel=t.kernel, weights=t.weights, size=t.size, seconds=t.seconds)
            for t in layer.timed
        ],
        tuned=_tuned(layer.match),
    )


def _tuned(match: Match) -> manifest.Tuned | None:
    """Where decisions are from; None for the defaults of which nothing is known."""
    record = match.record
    if record is None or match.ratio is None:
        return None
    return manifest.Tuned(
        kind=match.kind,
        decisions=dict(match.decisions),
        ratio=match.ratio,
        noise=record.noise,
        threads=record.threads,
        layer=problems.words(record.problem),
        machine=record.machine.cpu,
        date=record.date,
    )


def _versions() -> dict[str, str]:
    packages = {"tvm": "apache-tvm", "tvm-ffi": "apache-tvm-ffi", "numpy": "numpy"}
    return {"nybble": nybble.__version__, **{k: version(v) for k, v in packages.items()}}


def _port(var: Any, name: str, border: Border) -> Port:
    scale, zero_point = border
    dtype = graph.dtype_of(var)
    held = str(numerics.storage(dtype)) if dtype.startswith(("int", "uint")) else dtype
    return Port(name, tuple(map(_extent, var.ty.shape)), held, scale, zero_point)


def _extent(extent: Any) -> int | str:
    """A number; a name; or what is computed from names, ``(h - 1) // 2 + 1``, as Python says it."""
    simple = sym.Analyzer().simplify(extent)
    number = getattr(simple, "value", None)
    if number is not None:
        return int(number)
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(simple)).replace("T.", "")


def _input_border(mod: tvm.IRModule, param: Any) -> Border:
    """Scale and zero point of the quantize behind an input, also behind a change of layout."""
    readers = graph.users(mod)
    reached = [param]
    for var in reached:
        for binding in readers[var]:
            if graph.op_name(binding.value) == "nybble.quantize":
                return _scalars(binding.value)
            if graph.op_name(binding.value) in specs.STRUCTURAL:
                reached.append(binding.var)
    return None, None


def _output_border(mod: tvm.IRModule, output: Any) -> Border:
    """Scale and zero point of the dequantize before an output."""
    made: dict[Any, Any] = {b.var: b.value for b in graph.bindings(mod)}
    value = made.get(output)
    while graph.op_name(value) in specs.STRUCTURAL:
        value = made.get(graph.operands(value)[0])
    return _scalars(value) if graph.op_name(value) == "nybble.dequantize" else (None, None)


def _scalars(border: Any) -> Border:
    """Scale and zero point when the border has one of each; None where they are per channel."""
    scale, zero_point = (graph.numpy_of(a) for a in border.args[1:3])
    single = scale.size == 1
    return (float(scale.ravel()[0]), int(zero_point.ravel()[0])) if single else (None, None)
