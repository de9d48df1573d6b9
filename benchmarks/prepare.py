"""Making each contender's files from a float problem, once; peers' files are kept under build/.

The recipes are the ones that each peer's own documentation gives for this kind of machine.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import RESULTS
from benchmarks.problems import Array, Problem

SAMPLES = 8
FILES = RESULTS / "files"


def folder(problem: Problem) -> Path:
    """Where the files of a problem are kept."""
    return FILES / (problem.family or problem.name)


def source(problem: Problem) -> Path:
    """The float network as ONNX; its batch is open."""

    def make(target: Path) -> None:
        import torch  # noqa: PLC0415

        from tests.models import export_onnx  # noqa: PLC0415

        target.write_bytes(export_onnx(problem.build(), torch.zeros(*problem.shape)))

    return _kept(folder(problem) / "float.onnx", make)


def input_path(problem: Problem) -> Path:
    """The input that is timed, ``.npy``."""
    return folder(problem) / f"input-{problem.shape[0]}.npy"


def reference_path(problem: Problem) -> Path:
    """What the float network makes of that input, ``.npy``."""
    return folder(problem) / f"reference-{problem.shape[0]}.npy"


def inputs(problem: Problem) -> Path:
    """Writes the input and its reference."""

    def make(target: Path) -> None:
        import torch  # noqa: PLC0415

        data = problem.data(1)
        np.save(input_path(problem), data)
        with torch.inference_mode():
            np.save(target, problem.build()(torch.from_numpy(data)).numpy())

    _kept(reference_path(problem), make)
    return input_path(problem)


def calibration(problem: Problem) -> list[Array]:
    """Eight images, or one input of many rows, in the problem's shape."""
    rows = problem.shape[0]
    data = problem.data(SAMPLES if rows == 1 else 1)
    return [data[i : i + rows] for i in range(0, len(data), rows)]


def nybble_path(problem: Problem, recipe: Mapping[str, Any] | None, target: str) -> Path:
    """Where Nybble's library is."""
    return folder(problem) / f"nybble-{problem.name}-{label(recipe)}-{target}.so"


def nybble_file(
    problem: Problem, recipe: Mapping[str, Any] | None, target: str, threads: int
) -> Path:
    """Nybble's library for so many threads: made anew. ``recipe`` None compiles the float network.

    Raises:
        nybble.NybbleError: the walk refuses it.
    """
    import nybble  # noqa: PLC0415

    path = nybble_path(problem, recipe, target)
    path.unlink(missing_ok=True)
    model = nybble.load_onnx(source(problem), {"input": problem.shape})
    if recipe is None:
        return nybble.compile(model, target, threads=threads).save(path)
    quantized = nybble.quantize(model, calibration(problem), nybble.Recipe(**recipe))
    return nybble.compile(quantized, target, threads=threads).save(path)


def label(recipe: Mapping[str, Any] | None) -> str:
    """A short name of a recipe, such as ``w4a8``."""
    if recipe is None:
        return "f32"
    widths = {"weights": 8, "activations": 8, **recipe}
    weights = "wt" if widths["weights"] == "ternary" else f"w{widths['weights']}"
    group = f"g{widths['group']}" if "group" in widths else ""
    return (
        weights
        + group
        + ("af" if widths["activations"] == "float" else f"a{widths['activations']}")
    )


def copies(path: Path, count: int) -> tuple[Path, ...]:
    """The file and its copies: files of their own, so that no two share memory."""
    made = [path]
    for i in range(1, count):
        copy = path.parent / "copies" / f"{path.stem}-{i}{path.suffix}"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
        if path.suffix == ".xml":
            shutil.copyfile(path.with_suffix(".bin"), copy.with_suffix(".bin"))
        made.append(copy)
    return tuple(made)


def float_torch(problem: Problem) -> Path:
    """The float network as a frozen trace."""
    path = source(problem).with_name("float.pt")

    def make(target: Path) -> None:
        import torch  # noqa: PLC0415

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is frozen, and works
            traced = torch.jit.trace(problem.build().eval(), torch.zeros(*problem.shape))
            torch.jit.freeze(traced).save(str(target))

    return _kept(path, make)


def weights(problem: Problem) -> Path:
    """A linear layer's weights, float32 (N, K)."""
    path = source(problem).with_name("weights.npy")

    def make(target: Path) -> None:
        with target.open("wb") as file:
            np.save(file, problem.build().weight.detach().numpy())

    return _kept(path, make)


def ort_int8(problem: Problem) -> Path:
    """ONNX Runtime's recipe for x86: QDQ, unsigned activations, signed weights per channel."""

    def make(target: Path) -> None:
        import onnxruntime.quantization as ort  # noqa: PLC0415
        from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

        class Reader(ort.CalibrationDataReader):
            def __init__(self) -> None:
                self._inputs = iter(calibration(problem))

            def get_next(self) -> dict[str, Array] | None:
                item = next(self._inputs, None)
                return None if item is None else {"input": item}

        prepared = target.with_name("prepared.onnx")
        quant_pre_process(str(source(problem)), str(prepared))
        ort.quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=ort.QuantFormat.QDQ,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            per_channel=True,
        )
        prepared.unlink()

    return _kept(source(problem).with_name("ort-int8.onnx"), make)


def ort_dynamic(problem: Problem) -> Path:
    """ONNX Runtime with activations quantized on the fly (MatMulInteger and its fusions)."""

    def make(target: Path) -> None:
        import onnxruntime.quantization as ort  # noqa: PLC0415

        ort.quantize_dynamic(
            str(source(problem)), str(target), per_channel=True, weight_type=ort.QuantType.QInt8
        )

    return _kept(source(problem).with_name("ort-dynamic.onnx"), make)


def ort_nbits(bits: int, problem: Problem) -> Path:
    """ONNX Runtime's MatMulNBits, groups of 128, activations quantized to s8 on the fly."""

    def make(target: Path) -> None:
        import onnx  # noqa: PLC0415
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits  # noqa: PLC0415

        quantizer = nbits.MatMulNBitsQuantizer(
            onnx.load(source(problem)),
            bits=bits,
            block_size=128,
            is_symmetric=True,
            accuracy_level=4,
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), False)

    return _kept(source(problem).with_name(f"ort-{bits}bits.onnx"), make)


def openvino_int8(problem: Problem) -> Path:
    """OpenVINO by NNCF's post-training quantization: preset mixed, fast bias correction."""

    def make(target: Path) -> None:
        import nncf  # noqa: PLC0415
        import openvino  # noqa: PLC0415

        model = openvino.convert_model(source(problem), input=list(problem.shape))
        data = nncf.Dataset(calibration(problem))
        quantized = nncf.quantize(
            model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=SAMPLES
        )
        _save_ir(quantized, target)

    return _kept(source(problem).with_name("openvino-int8.xml"), make)


def openvino_int4(problem: Problem) -> Path:
    """OpenVINO with 4-bit weights in groups of 128 (NNCF's weight compression)."""

    def make(target: Path) -> None:
        import nncf  # noqa: PLC0415
        import openvino  # noqa: PLC0415

        model = openvino.convert_model(source(problem), input=list(problem.shape))
        mode = nncf.CompressWeightsMode.INT4_SYM
        compressed = nncf.compress_weights(
            model, mode=mode, ratio=1.0, group_size=128, all_layers=True
        )
        _save_ir(compressed, target)

    return _kept(source(problem).with_name("openvino-int4.xml"), make)


def _save_ir(model: Any, target: Path) -> None:
    import openvino  # noqa: PLC0415

    openvino.save_model(model, target, compress_to_fp16=False)


def _kept(path: Path, make: Callable[[Path], Any]) -> Path:
    if not path.exists():
        _write(path, make)
    return path


def _write(path: Path, make: Callable[[Path], Any]) -> None:
    """Makes the file under another name first, so that half a file is never taken for one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"half{os.getpid()}-{path.name}")
    make(half)
    if path.suffix == ".xml":
        half.with_suffix(".bin").rename(path.with_suffix(".bin"))
    half.rename(path)
