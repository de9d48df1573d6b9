"""What a mutant goes through, by kind."""

from __future__ import annotations

import contextlib
import io
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import nybble
from nybble import commands
from nybble.errors import NybbleError
from nybble.ir import graph
from nybble.runtime import manifest as format_
from tests.fuzzing import library_mutants, onnx_mutants

DEEP = 8
"""One mutant in so many that can be imported goes on through quantization and compilation."""
LARGEST = 1 << 16
"""Elements of an input that these are called with; larger ones end at the import."""


class DiffersError(AssertionError):
    """A mutant did something else than what is promised."""


def onnx(seeds: list[Path], rng: Random) -> str:
    """Import; a share of what can be imported is quantized, compiled, run, compared."""
    data = onnx_mutants.mutant([path.read_bytes() for path in seeds], rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of values that mutants make infinite
        made = nybble.load_onnx(data)
        feeds = _feeds(made, rng) if rng.randrange(DEEP) == 0 else None
        return "imported" if feeds is None else _compiled(made, feeds, rng)


def _feeds(model: Any, rng: Random) -> dict[str, Any] | None:
    """Random inputs; None where they would be large."""
    values, found = np.random.default_rng(rng.randrange(1 << 30)), {}
    for param in graph.inputs(model.module):
        shape = tuple(2 if isinstance(size, str) else size for size in graph.shape_of(param))
        if np.prod(shape, dtype=float) > LARGEST:
            return None
        dtype = graph.dtype_of(param)
        is_float = dtype.startswith("float")
        drawn = values.standard_normal(shape) if is_float else values.integers(0, 2, shape)
        found[str(param.name)] = drawn.astype(dtype)
    return found


def _compiled(model: Any, feeds: dict[str, Any], rng: Random) -> str:
    quantizes = not isinstance(model, nybble.QuantizedModel) and rng.random() < 0.7
    made = nybble.quantize(model, [feeds]) if quantizes else model
    path = nybble.compile(made).save("net.so")
    try:
        got = nybble.load(path, threads=1)(feeds)
        wanted = made.run(feeds)
    finally:
        path.unlink()
    _same(got, wanted)
    return "compiled"


def _same(got: Any, wanted: Any) -> None:
    """The library's results are the law's, up to the rounding of float layers."""
    if isinstance(wanted, dict):
        for name, value in wanted.items():
            _same(got[name], value)
        return
    got, wanted = np.asarray(got), np.asarray(wanted)
    finite = np.abs(wanted[np.isfinite(wanted)]) if wanted.dtype.kind == "f" else np.abs(wanted)
    allowed = 1e-3 * float(finite.max(initial=0)) + 1e-5
    if got.shape != wanted.shape or not np.allclose(
        got, wanted, rtol=1e-3, atol=allowed, equal_nan=True
    ):
        raise DiffersError(f"the library gives {got.ravel()[:8]}, the law {wanted.ravel()[:8]}")


def library(seeds: list[Path], rng: Random) -> str:
    """A damaged library: nothing reads it as sound, whatever is changed."""
    whole = rng.choice(seeds).read_bytes()
    changed = library_mutants.damaged(whole, rng)
    if changed == whole:
        return "unchanged"
    with _file(changed) as path:
        for read in (nybble.load, format_.read_all, _inspect):
            try:
                read(path)
            except nybble.errors.ArtifactError:
                continue
            raise DiffersError(f"{read} took a damaged file for a sound one")
    return "refused"


def manifest(seeds: list[Path], rng: Random) -> str:
    """Another manifest under a checksum that is right, as another version might have written it."""
    with _file(library_mutants.resealed(rng.choice(seeds).read_bytes(), rng)) as path:
        ends = []
        for read in (_inspect, nybble.load):
            try:
                read(path)
                ends.append("taken")
            except NybbleError as error:
                ends.append(type(error).__name__)
    return "/".join(ends)


@contextlib.contextmanager
def _file(data: bytes) -> Any:
    path = Path("mutant.so")
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.unlink()


def _inspect(path: Path) -> None:
    """``nybble inspect``, in words and in JSON."""
    for as_json in (False, True):
        with contextlib.redirect_stdout(io.StringIO()):
            commands.inspect(path, as_json, False, 1)


# ---------------------------------------------------------------- what a hunt must find


def dies(_seeds: list[Path], _rng: Random) -> str:
    """The process itself."""
    os.abort()


def hangs(_seeds: list[Path], _rng: Random) -> str:
    """No answer."""
    time.sleep(1000)
    return "late"


def leaves(_seeds: list[Path], _rng: Random) -> str:
    """A file."""
    Path("forgotten").touch()
    return "done"


def escapes(_seeds: list[Path], _rng: Random) -> str:
    """An error that is none of ours."""
    raise KeyError("escaped")


KINDS: dict[str, Callable[[list[Path], Random], str]] = {
    "onnx": onnx, "nodes": onnx, "library": library, "manifest": manifest,
    "dies": dies, "hangs": hangs, "leaves": leaves, "escapes": escapes,
}  # fmt: skip
