"""Nybble: a quantizing compiler on Apache TVM.

A trained network goes in; one ``.so`` comes out that computes in integers.

    model = nybble.load_onnx("net.onnx")
    quantized = nybble.quantize(model, calibration_images)
    nybble.compile(quantized).save("net.so")
    logits = nybble.load("net.so")(images)

Importing this package loads neither TVM nor torch: names are resolved on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nybble.allocation.allocate import allocate
    from nybble.allocation.pareto import pareto
    from nybble.allocation.result import Allocation
    from nybble.evaluation import Evaluation
    from nybble.model import Artifact, Model, QuantizedModel
    from nybble.passes.sensitivity.options import Measure
    from nybble.recipe import Recipe
    from nybble.report.study import Study
    from nybble.runtime.session import Session, load
    from nybble.sensitivity_run import sensitivity
    from nybble.sensitivity_table import Sensitivity
    from nybble.study_run import StudyOptions, study
    from nybble.tune_run import Tuned, TuneOptions, tune
    from nybble.walk import compile, load_onnx, load_torch, quantize  # noqa: A004

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Artifact",
    "Evaluation",
    "Measure",
    "Model",
    "QuantizedModel",
    "Recipe",
    "Sensitivity",
    "Session",
    "Study",
    "StudyOptions",
    "TuneOptions",
    "Tuned",
    "allocate",
    "compile",
    "load",
    "load_onnx",
    "load_torch",
    "pareto",
    "quantize",
    "sensitivity",
    "study",
    "tune",
]

_HOMES = {
    "Allocation": "nybble.allocation.result",
    "Artifact": "nybble.model",
    "Evaluation": "nybble.evaluation",
    "Measure": "nybble.passes.sensitivity.options",
    "Model": "nybble.model",
    "QuantizedModel": "nybble.model",
    "Recipe": "nybble.recipe",
    "Sensitivity": "nybble.sensitivity_table",
    "Session": "nybble.runtime.session",
    "Study": "nybble.report.study",
    "StudyOptions": "nybble.study_run",
    "TuneOptions": "nybble.tune_run",
    "Tuned": "nybble.tune_run",
    "allocate": "nybble.allocation.allocate",
    "compile": "nybble.walk",
    "load": "nybble.runtime.session",
    "load_onnx": "nybble.walk",
    "load_torch": "nybble.walk",
    "pareto": "nybble.allocation.pareto",
    "quantize": "nybble.walk",
    "sensitivity": "nybble.sensitivity_run",
    "study": "nybble.study_run",
    "tune": "nybble.tune_run",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from its home module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nybble' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
