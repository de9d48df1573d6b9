"""The passes in walking order, and the runner that checks what they leave behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tvm

from nybble.errors import NybbleError, StageError
from nybble.ir import graph, specs
from nybble.passes.base import Pass
from nybble.passes.calibrate import Ranges
from nybble.passes.channels_last import channels_last
from nybble.passes.drop_identities import drop_identities
from nybble.passes.dynamic import quantize_at_run_time
from nybble.passes.fold_batch_norm import fold_batch_norm
from nybble.passes.fold_padding import fold_padding, spell_out_ceil_mode
from nybble.passes.global_pool import spell_out_global_pool
from nybble.passes.moved_grids import round_before_moves, round_behind_moves
from nybble.passes.quantize import insert_borders
from nybble.passes.scale_as_depthwise import scale_as_depthwise
from nybble.passes.settle import Settled, settle
from nybble.passes.spelled_norms import fuse_rms_norm
from nybble.passes.spelled_rounding import quantize_spelled_rounding
from nybble.passes.to_integer import lower_to_integers
from nybble.passes.tokens import add_constant_tokens, reshape_where_nothing_moves
from nybble.passes.weights_only import in_float, in_half, weights_only
from nybble.recipe import DYNAMIC, Recipe

Step = tuple[str, Callable[[tvm.IRModule], tvm.IRModule]]

CANONICALIZE: tuple[Pass[Any], ...] = (
    drop_identities,
    channels_last,
    drop_identities,
    fuse_rms_norm,
    reshape_where_nothing_moves,
    add_constant_tokens,
    drop_identities,
    spell_out_ceil_mode,
    fold_padding,
    spell_out_global_pool,
    fold_batch_norm,
    scale_as_depthwise,
    drop_identities,
)


def canonicalize(mod: tvm.IRModule) -> tvm.IRModule:
    """Float as imported -> float canonical: NHWC, batch norm folded, one form per layer."""
    return run(mod, [(p.name, p) for p in CANONICALIZE], "float", "float")


CANONICALIZE_QUANTIZED: tuple[Pass[Any], ...] = (
    drop_identities,
    quantize_spelled_rounding,
    channels_last,
    drop_identities,
    spell_out_ceil_mode,
    fold_padding,
    spell_out_global_pool,
    drop_identities,
    round_before_moves,
    round_behind_moves,
)


def canonicalize_quantized(mod: tvm.IRModule) -> tvm.IRModule:
    """Quantized as imported -> quantized canonical: nothing is folded, the borders stay."""
    return run(mod, [(p.name, p) for p in CANONICALIZE_QUANTIZED], "quantized", "quantized")


def quantize(mod: tvm.IRModule, ranges: Ranges, recipe: Recipe) -> tvm.IRModule:
    """Float canonical -> quantized.

    Raises:
        CalibrationError: ``ranges`` lacks a tensor.
    """
    return insert(settle(mod, ranges, recipe))


def insert(settled: Settled) -> tvm.IRModule:
    """What quantization decided -> quantized."""
    steps = [(insert_borders.name, partial(insert_borders, settled=settled))]
    return run(settled.module, steps, "float", "quantized")


def to_integer(mod: tvm.IRModule, recipe: Recipe | None) -> tvm.IRModule:
    """Quantized -> integer.

    Args:
        mod: of stage ``quantized``.
        recipe: how it was quantized; None for a module that was imported so, where every float op
            that stays is listed in ``kept_float``.

    Raises:
        StageError: an accumulator could overflow, or a scale ratio has no dyadic form.
    """
    steps = [(lower_to_integers.name, partial(lower_to_integers, recipe=recipe))]
    return run(mod, steps, "quantized", "integer")


def round_weights(mod: tvm.IRModule, recipe: Recipe) -> tuple[tvm.IRModule, tvm.IRModule]:
    """Float canonical -> (quantized, integer), where the recipe calibrates no activations.

    Raises:
        NybbleError: there is no linear layer, or a pattern of the recipe matches none.
    """
    steps = [(weights_only.name, partial(weights_only, recipe=recipe))]
    integer = run(mod, steps, "float", "integer")
    simulated = run(integer, [(in_float.name, in_float)], "integer", "quantized")
    return simulated, at_run_time(integer) if recipe.activations == DYNAMIC else integer


def at_run_time(mod: tvm.IRModule) -> tvm.IRModule:
    """Integer -> integer, with weight-only layers as integer layers of rows, where that fits."""
    return run(mod, [(quantize_at_run_time.name, quantize_at_run_time)], "integer", "integer")


def suited(mod: tvm.IRModule, arch: str) -> tvm.IRModule:
    """The law of a kind of target: what an integer module means where it is compiled for.

    Weight-only layers round rows of activations to integers on CPUs and multiply halves on GPUs
    (`nybble.ir.weight_only`). Integers are the same everywhere, and so are modules of other stages.

    Args:
        mod: of any stage.
        arch: the target's, ``cuda`` for GPUs.
    """
    return for_gpu(mod) if graph.stage(mod) == "integer" and arch == "cuda" else mod


def for_gpu(mod: tvm.IRModule) -> tvm.IRModule:
    """Integer -> integer, with floats computed as GPUs do."""
    return run(mod, [(in_half.name, in_half)], "integer", "integer")


def run(mod: tvm.IRModule, steps: Sequence[Step], before: str, after: str) -> tvm.IRModule:
    """Runs passes in order between two checked borders.

    ``NYBBLE_DEBUG=2`` checks after every pass, ``3`` also prints every module; ``NYBBLE_DUMP=dir``
    writes them to files.

    Args:
        mod: a module of stage ``before``.
        steps: (name, pass) in order.
        before: the stage whose spec ``mod`` must keep.
        after: the stage whose spec the result must keep.

    Raises:
        StageError: a spec is broken; names the op, the source model's node and the passes run.
        NybbleError: ``NYBBLE_DEBUG`` is no number, or ``NYBBLE_DUMP`` no folder to write to.
    """
    debug = _debug_level()
    done: list[str] = []
    _check(mod, before, done)
    for index, (name, step) in enumerate(steps):
        mod = step(mod)
        done.append(name)
        if index == len(steps) - 1 or debug >= 2:
            _check(mod, after if index == len(steps) - 1 else before, done)
        _dump(mod, f"{after}.{index:02}.{name}", debug >= 3)
    return mod


def _debug_level() -> int:
    text = os.environ.get("NYBBLE_DEBUG") or "0"
    if not text.isdecimal():
        raise NybbleError(f"NYBBLE_DEBUG={text!r} is not one of: 0, 1, 2, 3.")
    return int(text)


def _check(mod: tvm.IRModule, stage: str, done: Sequence[str]) -> None:
    try:
        specs.check(mod, stage)
    except StageError as error:
        history = f"after the passes {', '.join(done)}" if done else "before any pass"
        raise StageError(f"{error} ({history})") from error


def _dump(mod: tvm.IRModule, title: str, to_screen: bool) -> None:
    folder = os.environ.get("NYBBLE_DUMP")
    if not folder and not to_screen:
        return
    text = str(mod.script(show_meta=False))
    if folder:
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{title}.py").write_text(text)
        except OSError as error:
            raise NybbleError(f"NYBBLE_DUMP={folder}: cannot be written: {error}.") from error
    if to_screen:
        print(f"# {title}\n{text}")  # noqa: T201  the reader asked for it
