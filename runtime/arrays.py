"""What a caller hands to a session, checked against the manifest and made fit for the kernels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ArtifactError
from nybble.runtime import sums
from nybble.runtime.manifest import Port
from nybble.runtime.parameters import ALIGNMENT

MOST_KNOWN = 8


class Binder:
    """`bind` for one network, which looks only once at arrays of the same shapes and dtypes.

    Args:
        ports: the inputs that the network has.
        forget: called when `MOST_KNOWN` different shapes have come since the last time: what the
            runtime has kept for them may go.
    """

    def __init__(self, ports: Sequence[Port], forget: Callable[[], None]):
        self._ports = ports
        self._forget = forget
        self._known: set[tuple[Any, ...]] = set()

    def __call__(self, values: tuple[Any, ...]) -> list[NDArray[Any]]:
        """The caller's arrays, as `bind` gives them.

        Raises:
            ArtifactError: as `bind` does.
        """
        plain = all(type(value) is np.ndarray for value in values)
        kind = tuple([(value.shape, value.dtype) for value in values]) if plain else ()
        if kind and kind in self._known:
            return [aligned(value) for value in values]
        arrays = bind(self._ports, values)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
            self._forget()
        self._known.add(tuple([(array.shape, array.dtype) for array in arrays]))
        return arrays


def bind(ports: Sequence[Port], values: tuple[Any, ...]) -> list[NDArray[Any]]:
    """The caller's arrays in the manifest's order, checked, contiguous and aligned.

    Args:
        ports: the inputs that the network has.
        values: one array per input, or a single mapping of input name to array. Anything with
            ``__array__`` or ``__dlpack__`` on the CPU counts as an array.

    Raises:
        ArtifactError: a missing or unknown input, a wrong dtype or shape, or symbolic extents that
            disagree. Nothing is cast: a silent cast would hide a wrong preprocessing.
    """
    if len(values) == 1 and isinstance(values[0], Mapping):
        values = _by_name(ports, values[0])
    if len(values) != len(ports):
        raise ArtifactError(
            f"{len(values)} array(s) given; the network has {len(ports)} input(s): {_list(ports)}."
        )
    extents: dict[str, int] = {}
    arrays = [_checked(port, value, extents) for port, value in zip(ports, values, strict=True)]
    for port, array in zip(ports, arrays, strict=True):
        for want, have in zip(port.shape, array.shape, strict=True):
            if not sums.is_kept(want, have, extents):
                raise _misfit(port, array, extents)
    return arrays


def _by_name(ports: Sequence[Port], given: Mapping[str, Any]) -> tuple[Any, ...]:
    names = [port.name for port in ports]
    if set(given) != set(names):
        raise ArtifactError(f"Inputs {sorted(given)} given; the network has {_list(ports)}.")
    return tuple(given[name] for name in names)


def _checked(port: Port, value: Any, extents: dict[str, int]) -> NDArray[Any]:
    """One array; ``extents`` collects what the symbolic extents turned out to be."""
    array = _as_array(port, value)
    if array.dtype != np.dtype(port.dtype):
        raise ArtifactError(
            f"Input '{port.name}': expected {port}, got {array.dtype}. "
            f"Nothing is cast silently; pass array.astype('{port.dtype}') if that is meant."
        )
    before = dict(extents)
    fits = array.ndim == len(port.shape) and all(
        have == (extents.setdefault(want, have) if isinstance(want, str) else want)
        for want, have in zip(port.shape, array.shape, strict=True)
        if not sums.addends(want)
    )
    if not fits:
        raise _misfit(port, array, before)
    return aligned(array)


def _misfit(port: Port, array: NDArray[Any], extents: Mapping[str, int]) -> ArtifactError:
    known = f" with {extents}" if extents else ""
    return ArtifactError(
        f"Input '{port.name}': expected shape {_extents(port.shape)}{known}, "
        f"got {_extents(array.shape)}."
    )


def _as_array(port: Port, value: Any) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        if hasattr(value, "__array__"):
            return np.asarray(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(f"Input '{port.name}': not readable as an array: {error}") from error
    kind = type(value).__name__
    raise ArtifactError(f"Input '{port.name}': expected an array of {port}, got a {kind}.")


def emptied(
    inputs: Sequence[Port], outputs: Sequence[Port], arrays: Sequence[NDArray[Any]]
) -> set[str]:
    """The open sizes that are 0 and leave nothing to compute.

    An empty cache that the network appends to is not among them: it runs as it is.
    """
    shapes = zip(inputs, arrays, strict=True)
    return {
        str(name)
        for port, array in shapes
        for name, extent in zip(port.shape, array.shape, strict=True)
        if extent == 0
    } - sums.appended(outputs)


def nothing(
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    arrays: Sequence[NDArray[Any]],
    run: Callable[[list[NDArray[Any]]], list[NDArray[Any]]],
) -> list[NDArray[Any]]:
    """The outputs of a network of which an input has no elements: they have none either.

    Kernels are not made for loops that never turn, so the network runs with 1 in place of each 0;
    that tells the other extents.

    Args:
        inputs: the ports of ``arrays``.
        outputs: the ports to answer.
        arrays: the inputs, as `bind` gives them.
        run: the network.

    Raises:
        ArtifactError: an output has elements all the same, or an extent is computed from a 0.
    """
    zeros = emptied(inputs, outputs, arrays)
    for port in outputs:
        computed = [w for w in port.shape if isinstance(w, str) and w not in zeros]
        words = {word for extent in computed for word in re.findall(r"\w+", extent)}
        if zeros.isdisjoint(port.shape) or not zeros.isdisjoint(words):
            raise ArtifactError(
                f"An input has no elements ({', '.join(map(str, zeros))} is 0), but output "
                f"'{port.name}' {port} is not empty with it, or not sure to be."
            )
    stand_ins = [
        np.zeros(
            [1 if w in zeros else n for w, n in zip(port.shape, x.shape, strict=True)], x.dtype
        )
        for port, x in zip(inputs, arrays, strict=True)
    ]
    return [
        np.empty(
            [0 if w in zeros else n for w, n in zip(port.shape, y.shape, strict=True)], y.dtype
        )
        for port, y in zip(outputs, run(list(map(aligned, stand_ins))), strict=True)
    ]


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself when it is contiguous, writable and aligned, else a copy that is.

    DLPack hands over no read-only memory, so those are copied as well.
    """
    if not array.size:
        return _compact(array.shape, array.dtype)
    fit = array.flags.c_contiguous and array.flags.writeable
    if fit and _address(array) % ALIGNMENT == 0:
        return array
    buffer = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -_address(buffer) % ALIGNMENT
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def _compact(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array without elements whose strides are its shape's, as kernels ask; NumPy's are 0."""
    strides = [prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
    return np.lib.stride_tricks.as_strided(np.empty(ALIGNMENT, dtype), shape, strides)


def _address(array: NDArray[Any]) -> int:
    """Where the data begins; ``array.ctypes.data`` takes four times as long to say so."""
    return int(array.__array_interface__["data"][0])


def _extents(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _list(ports: Sequence[Port]) -> str:
    return ", ".join(f"'{port.name}' {port}" for port in ports)
