"""What the public calls hand to each other: a model, a quantized model, an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from nybble.allocation.result import Allocation
from nybble.errors import NybbleError
from nybble.export.onnx import to_onnx
from nybble.ir import graph, interpreter
from nybble.passes import pipeline
from nybble.recipe import Recipe
from nybble.runtime.artifact import export_all, write_whole
from nybble.runtime.manifest import Manifest
from nybble.schedules.target import resolve

if TYPE_CHECKING:
    import tvm

Array = NDArray[Any]
Inputs = Array | Mapping[str, Array] | Sequence[Array]
Outputs = Array | dict[str, Array]
Observe = Callable[[str, Array], None]


def module_of(model: Any) -> tvm.IRModule:
    """The module of an imported network.

    Raises:
        NybbleError: it is something else, such as the network's path.
    """
    if not isinstance(model, Model):
        raise NybbleError(
            f"The model is a {type(model).__name__}; pass what nybble.load_onnx or "
            "nybble.load_torch returned."
        )
    return model.module


def _described(mod: tvm.IRModule) -> str:
    """``x: float32[n, 3] -> y: float32[n, 10]; 12 ops``: what fits on a line."""

    def port(name: str, var: Any) -> str:
        return f"{name}: {graph.dtype_of(var)}[{', '.join(map(str, graph.shape_of(var)))}]"

    takes = ", ".join(port(str(var.name), var) for var in graph.inputs(mod))
    named = zip(graph.output_names(mod), graph.outputs(mod), strict=True)
    gives = ", ".join(port(name, var) for name, var in named)
    return f"{takes} -> {gives}; {len(graph.bindings(mod))} ops"


def named_inputs(mod: tvm.IRModule, inputs: Inputs) -> dict[str, Array]:
    """One array per input of ``mod``, by name, from what a user may pass.

    Raises:
        NybbleError: an input is missing, unknown, or has the wrong shape or dtype.
    """
    params = graph.inputs(mod)
    names = [str(p.name) for p in params]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif isinstance(inputs, Sequence):
        given = dict(zip(names, inputs, strict=False)) if len(inputs) == len(names) else {}
    else:  # an array, or what NumPy takes for one
        given = {names[0]: inputs} if len(names) == 1 else {}
    if given.keys() != set(names):
        raise NybbleError(f"The model takes the inputs {names}, got {sorted(given) or 'others'}.")
    for param in params:
        check_array(str(param.name), given[str(param.name)], param)
    return given


def check_array(name: str, array: Array, param: Any) -> None:
    """Checks one input against its parameter; symbolic extents accept any size.

    Raises:
        NybbleError: shape or dtype differ.
    """
    shape, dtype = graph.shape_of(param), graph.dtype_of(param)
    got = np.asarray(array)
    fits = got.ndim == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, got.shape, strict=True)
    )
    if not fits or str(got.dtype) != dtype:
        raise NybbleError(
            f"Input '{name}': expected {dtype} {shape}, got {got.dtype} {got.shape}. "
            "Reshape or cast the array."
        )


def _named_outputs(mod: tvm.IRModule, values: list[Array]) -> Outputs:
    names = graph.output_names(mod)
    return values[0] if len(values) == 1 else dict(zip(names, values, strict=True))


@dataclass(frozen=True, repr=False)
class Model:
    """A float network as imported.

    Attributes:
        module: Relax, stage ``float``.
    """

    module: tvm.IRModule

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_described(self.module)})"

    def run(self, inputs: Inputs) -> Outputs:
        """Evaluates the float network in NumPy; one array, or a dict for several outputs."""
        values = interpreter.run(self.module, named_inputs(self.module, inputs))
        return _named_outputs(self.module, values)


@dataclass(frozen=True)
class Trial:
    """One network of a search, compiled and evaluated.

    Attributes:
        allocation: its widths.
        score: what the user's function said of the deployed library.
        accepted: whether it lies close enough to the float network's.
    """

    allocation: Allocation
    score: float
    accepted: bool


@dataclass(frozen=True, repr=False)
class QuantizedModel(Model):
    """A quantized network in its two forms.

    Attributes:
        module: stage ``quantized``: float ops between quantize/dequantize pairs.
        integer: stage ``integer``: what is deployed.
        recipe: how it was quantized; of mixed widths, with the width of every layer. None where
            another tool did it and the file was imported.
        allocation: the widths that were chosen, where the recipe left them open.
        trade: what they were chosen from (`nybble.mixed.Trade`).
        trials: what was tried on the way, where a drop of accuracy was limited.
    """

    integer: tvm.IRModule
    recipe: Recipe | None
    allocation: Allocation | None = None
    trade: Any = None
    trials: tuple[Trial, ...] = ()

    def run(
        self,
        inputs: Inputs,
        observe: Observe | None = None,
        target: str | dict[str, Any] | None = None,
    ) -> Outputs:
        """The NumPy law: exactly the integers (and the dequantized outputs) of every target.

        Only weight-only layers have two laws (`nybble.ir.weight_only`): CPUs keep theirs bit for
        bit, GPUs multiply in half precision and keep theirs within 1e-3 of the sum of magnitudes.

        Args:
            inputs: float32, an array, or arrays by name or in order.
            observe: called with every binding's name and value.
            target: whose law, as of `nybble.compile`; None for CPUs, which have one.

        Returns:
            One array, or a dict by name for several outputs.

        Raises:
            NybbleError: an unknown target, or inputs that do not fit.
        """
        arch = "" if target is None else resolve(target).arch
        module = pipeline.suited(self.integer, arch)
        values = interpreter.run(module, named_inputs(module, inputs), observe)
        return _named_outputs(self.integer, values)

    def simulate(self, inputs: Inputs) -> Outputs:
        """The quantized network in float arithmetic: rounding as deployed, sums in float32."""
        values = interpreter.run(self.module, named_inputs(self.module, inputs))
        return _named_outputs(self.module, values)

    @overload
    def to_onnx(self, path: None = None) -> bytes: ...

    @overload
    def to_onnx(self, path: str | Path) -> Path: ...

    def to_onnx(self, path: str | Path | None = None) -> bytes | Path:
        """The network as QDQ ONNX (opset 21), for ONNX Runtime and other tools.

        It computes what `simulate` does, with the biases rounded as deployed; below 8 bits the
        integers stay within their own width.

        Args:
            path: where to write; the file appears whole or not at all.

        Returns:
            The path; without one, the model's bytes.

        Raises:
            NybbleError: a layer has no ONNX form; names it.
            ArtifactError: the file cannot be written.
        """
        recipe = self.recipe
        module = self.module if recipe is None or recipe.is_calibrated else self.integer
        data = to_onnx(module, recipe.to_json() if recipe else "")
        return data if path is None else write_whole(path, data)


@dataclass(frozen=True, repr=False)
class Artifact:
    """Compiled code, not yet linked.

    Attributes:
        executable: TVM's executable.
        manifest: what the ``.so`` says of itself.
        higher: the same network for CPUs that can do more, by what they need.
        outside: the constants that go to a file of their own, in the entry's order.
        notes: what was left aside of the records of earlier sessions, in words.
    """

    executable: Any
    manifest: Manifest
    higher: tuple[Artifact, ...] = ()
    notes: tuple[str, ...] = ()
    outside: tuple[Array, ...] = ()

    def __repr__(self) -> str:
        return f"Artifact({', '.join(repr(one.manifest) for one in (self, *self.higher))})"

    def save(self, path: str | Path) -> Path:
        """Links all variants into one file; nothing is left behind on failure.

        Of a network with ``parameters="outside"`` its constants appear beside it, as
        ``net.so.params``. Of any other network they disappear with the library that it replaces.

        Raises:
            ArtifactError: no C compiler, or the file cannot be written.
        """
        parts = (self, *self.higher)
        variants = [(one.executable, one.manifest) for one in parts]
        export_all(variants, path, [one.outside for one in parts])
        return Path(path)
