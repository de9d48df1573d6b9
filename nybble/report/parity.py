"""Parity: the deployed library against the NumPy law, layer by layer, in integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from nybble.errors import NybbleError
from nybble.ir import graph, interpreter, numerics
from nybble.ir.weight_only import HALF, in_half
from nybble.passes import pipeline
from nybble.runtime.manifest import Layer
from nybble.runtime.session import Session

Array = NDArray[Any]
SUM = 2.0**-22  # of a result with a second branch, which is rounded on the way
TINY = 2.0**-149


@dataclass(frozen=True)
class ParityRow:
    """One layer's comparison.

    Attributes:
        layer: the source model's node name.
        kernel: the family that computed it.
        dtype: of the output.
        elements: compared.
        differing: of them, how many are not the same bits; all of them when the shapes differ.
        largest: largest absolute difference.
        exact: whether equality is promised: in an integer-only network always, else for integers
            until a float layer has run, whose last bits may tip a later rounding.
        bounded: whether the law is a value and a bound instead (`parity_on_target`).
        strain: then the largest difference as a share of what is allowed.
    """

    layer: str
    kernel: str
    dtype: str
    elements: int
    differing: int
    largest: float
    exact: bool
    bounded: bool = False
    strain: float = 0.0


@dataclass(frozen=True)
class ParityReport:
    """All layers in call order; ``equal`` is what a release rests on."""

    rows: tuple[ParityRow, ...]
    threads: int

    @property
    def equal(self) -> bool:
        """Whether there are layers that promise equality, or a bound, and every one keeps it."""
        promising = [row for row in self.rows if row.exact or row.bounded]
        return bool(promising) and all(
            row.strain <= 1 if row.bounded else row.differing == 0 for row in promising
        )

    @property
    def elements(self) -> int:
        """How many values were compared."""
        return sum(row.elements for row in self.rows)


def parity(
    integer_values: Mapping[str, Array] | Iterable[tuple[str, Array]],
    session: Session,
    inputs: Any,
    bounds: Mapping[str, Array] | None = None,
) -> ParityReport:
    """Compares what the deployed kernels wrote with what the law computed.

    Args:
        integer_values: the law's value of every binding, by name: `QuantizedModel.run` hands them
            to its observer.
        session: the loaded library; it runs once.
        inputs: the inputs that the law was given, as `Session.observe` takes them.
        bounds: by how much the outputs of some layers may differ, by the layers' names.

    Raises:
        NybbleError: the law has no value for a layer of the library.
        ArtifactError: the inputs do not fit.
    """
    values, allowed = dict(integer_values), bounds or {}
    manifest = session.manifest
    integer_only = not manifest.float_ops and not manifest.kept_float
    islands = {entry.rpartition(": ")[0] for entry in manifest.float_ops}
    rows: list[ParityRow] = []

    def compare(layer: Layer, output: Array) -> None:
        if layer["output"] not in values:
            raise NybbleError(
                f"Layer '{layer['name']}' writes '{layer['output']}', which the law never "
                "computed. Are library and quantized model of the same compilation?"
            )
        untouched = not islands & {layer["name"], *(row.layer for row in rows)}
        exact = integer_only or (output.dtype.kind in "iu" and untouched)
        law = values[layer["output"]]
        row = _row(layer, law, _unpacked(layer, output, law.shape[-1]), exact)
        bound = allowed.get(layer["name"])
        rows.append(row if bound is None else _within(row, law, output, bound))

    session.observe(inputs, compare)
    return ParityReport(tuple(rows), session.threads)


def parity_on_target(
    integer: tvm.IRModule, session: Session, inputs: Mapping[str, Array]
) -> ParityReport:
    """`parity` with the law of the library's target, every layer on what those before it gave.

    Weight-only layers on GPUs have no fixed last bits but a bound
    (`nybble.ir.weight_only.in_half`). What is allowed in one would spread to all behind it; so each
    gets the library's own values as operands, and what remains is the layer's own difference.

    Args:
        integer: the quantized network (`nybble.model.QuantizedModel.integer`).
        session: the loaded library; it runs twice.
        inputs: by name.

    Raises:
        NybbleError: the law has no value for a layer of the library.
        ArtifactError: the inputs do not fit.
    """
    law = pipeline.suited(integer, "cuda" if session.manifest.device else "")
    own: dict[str, Array] = {}
    values: dict[str, Array] = {}
    stored: dict[str, tuple[Layer, Array]] = {}
    session.observe(inputs, lambda layer, y: stored.update({layer["output"]: (layer, y.copy())}))

    def see(name: str, value: Array) -> None:
        values[name] = value
        if name in stored:
            own[name] = _unpacked(*stored[name], value.shape[-1])

    interpreter.run(law, inputs, see, own)
    return parity(values, session, inputs, _bounds(law, {**inputs, **values, **own}))


def _bounds(law: tvm.IRModule, values: Mapping[str, Array]) -> dict[str, Array]:
    """By how much weight-only layers in half precision may differ, by their names."""
    found = {}
    for binding in graph.bindings(law):
        call = binding.value
        if graph.op_name(call) != "nybble.weight_only":
            continue
        attrs = graph.attributes(call)
        if attrs["compute"] == HALF:
            x, constants = values[str(call.args[0].name)], map(graph.numpy_of, call.args[1:])
            found[str(binding.var.name)] = in_half(x, *constants, group=attrs["group"])[1]
    return found


def _within(row: ParityRow, law: Array, output: Array, bound: Array) -> ParityRow:
    """The row of a layer that may differ, whatever is fused behind it: no clamp adds to it."""
    if row.largest == float("inf") and law.shape != output.shape:
        return replace(row, exact=False, bounded=True, strain=float("inf"))
    same = (law == output) | (np.isnan(law) & np.isnan(output))
    with np.errstate(invalid="ignore"):
        far = np.where(same, 0, np.abs(law.astype(np.float64) - output))
    allowed = bound + SUM * np.abs(law.astype(np.float64))
    strain = np.max(np.where(far == 0, 0, far / np.maximum(allowed, TINY)), initial=0)
    strain = float(np.nan_to_num(strain, nan=np.inf))
    return replace(row, exact=False, bounded=True, strain=strain)


def _unpacked(layer: Layer, output: Array, count: int) -> Array:
    """One value an element, however the layer's output lies in memory."""
    if layer["form"] == "values":
        return output
    inverse = numerics.unpack if layer["form"] == "packed" else numerics.from_planes
    return inverse(output, count, layer["dtype"])


def _row(layer: Layer, law: Array, output: Array, exact: bool) -> ParityRow:
    differing, largest = difference(law, output)
    return ParityRow(
        layer=layer["name"],
        kernel=layer["kernel"],
        dtype=str(output.dtype),
        elements=output.size,
        differing=differing,
        largest=largest,
        exact=exact,
    )


def difference(law: Array, output: Array) -> tuple[int, float]:
    """How many elements differ, and by how much at most (inf where it cannot be said)."""
    if law.shape != output.shape or law.dtype != output.dtype:
        return output.size, float("inf")
    differing = int(np.count_nonzero(law != output))  # NaN differs from everything, itself too
    if differing == 0:
        return 0, 0.0
    gap = np.abs(law.astype(np.float64) - output.astype(np.float64))
    return differing, float(np.nan_to_num(gap.max(), nan=np.inf))
