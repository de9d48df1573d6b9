"""Parity: the deployed library against the NumPy law, layer by layer, in integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.errors import NybbleError
from nybble.ir import numerics
from nybble.runtime.manifest import Layer
from nybble.runtime.session import Session

Array = NDArray[Any]


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
    """

    layer: str
    kernel: str
    dtype: str
    elements: int
    differing: int
    largest: float
    exact: bool


@dataclass(frozen=True)
class ParityReport:
    """All layers in call order; ``equal`` is what a release rests on."""

    rows: tuple[ParityRow, ...]
    threads: int

    @property
    def equal(self) -> bool:
        """Whether there are layers, and every one that promises equality keeps it."""
        exact = [row for row in self.rows if row.exact]
        return bool(exact) and all(row.differing == 0 for row in exact)

    @property
    def elements(self) -> int:
        """How many values were compared."""
        return sum(row.elements for row in self.rows)


def parity(
    integer_values: Mapping[str, Array] | Iterable[tuple[str, Array]], session: Session, inputs: Any
) -> ParityReport:
    """Compares what the deployed kernels wrote with what the law computed.

    Args:
        integer_values: the law's value of every binding, by name: `QuantizedModel.run` hands them
            to its observer.
        session: the loaded library; it runs once.
        inputs: the inputs that the law was given, as `Session.observe` takes them.

    Raises:
        NybbleError: the law has no value for a layer of the library.
        ArtifactError: the inputs do not fit.
    """
    values = dict(integer_values)
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
        rows.append(_row(layer, law, _unpacked(layer, output, law.shape[-1]), exact))

    session.observe(inputs, compare)
    return ParityReport(tuple(rows), session.threads)


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
