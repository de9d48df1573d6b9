"""The public call `nybble.sensitivity`.

(The module has another name than the function, which a submodule of its name would replace.)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from typing import Any

from nybble import samples
from nybble.errors import NybbleError
from nybble.executors.choose import executor
from nybble.model import Model, module_of
from nybble.passes.pipeline import canonicalize
from nybble.passes.sensitivity.options import Measure
from nybble.phases import Progress
from nybble.recipe import Recipe, as_recipe
from nybble.sensitivity_table import Sensitivity, Width


def sensitivity(  # noqa: PLR0913  (the first three are enough)
    model: Model,
    calibration: Iterable[samples.Batch],
    measure: str | Measure = "perturbation",
    widths: Sequence[Width] = (2, 4, 8),
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    *,
    workers: str | None = None,
) -> Sensitivity:
    """Measures what each layer loses at each width of its weights.

    ``perturbation`` evaluates the network with one layer quantized, ``pairwise`` also with two;
    ``hessian`` takes second derivatives; ``hessian_proxy`` looks at the errors of each layer's own
    outputs, ``influence`` at how much blocks change what passes. Activations stay in float.
    Finished work is kept in Nybble's cache folder, under a hash of everything that it depends on:
    the same call does not work twice, and a killed run goes on where it stopped.

    Args:
        model: from `load_onnx` or `load_torch`.
        calibration: inputs as for `quantize`, without labels.
        measure: a name, or a `Measure` with options.
        widths: bits, or ``"ternary"``.
        recipe: what stays float, and how activations are calibrated; what it says of weights does
            not matter here.
        progress: called with (steps done, steps in all).
        workers: who evaluates ``perturbation`` and ``pairwise``: a number of processes, ``ray``,
            ``ray://host:10001``; this process when omitted.

    Returns:
        A table for `allocate`.

    Raises:
        CalibrationError: no data, wrong shape or dtype, NaN, infinity, outputs that never change.
        NybbleError: an unknown measure or width, a pattern that matches no layer, no torch.
        StageError: an op that cannot run in torch, or a loss without a derivative.
    """
    asked = measure if isinstance(measure, Measure) else Measure(measure)
    run, spool = _torch("sensitivity.run"), _torch("correction.spool")
    canonical = canonicalize(module_of(model))
    with spool.Spool() as kept:
        for batch in samples.batches(model, calibration):
            kept.add(batch)
        subject = run.Subject(canonical, kept, as_recipe(recipe), tuple(widths))
        with closing(executor(workers)) if workers else nullcontext() as farm:
            found: Sensitivity = run.measured(subject, asked, progress, farm)
    return found


def _torch(module: str) -> Any:
    try:
        return importlib.import_module(f"nybble.passes.{module}")
    except ImportError as error:
        raise NybbleError("nybble.sensitivity needs torch: pip install nybble[torch].") from error
