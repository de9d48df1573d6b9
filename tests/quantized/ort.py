"""Networks quantized by ONNX Runtime's own tool, and what ONNX Runtime says of a file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

QDQ, QOPERATOR = QuantFormat.QDQ, QuantFormat.QOperator
S8, U8, U16, S16 = QuantType.QInt8, QuantType.QUInt8, QuantType.QUInt16, QuantType.QInt16


class Reader(CalibrationDataReader):
    """Calibration samples, one by one."""

    def __init__(self, images: Iterable[Any], name: str):
        self._batches: Iterator[Any] = ({name: image[None]} for image in images)

    def get_next(self) -> Any:
        """The next one; None behind the last."""
        return next(self._batches, None)


def quantized(
    data: bytes, images: Any, folder: Path, form: Any = QDQ, types: Any = (U8, S8), **options: Any
) -> bytes:
    """A float network as ONNX Runtime's tool quantizes it.

    Args:
        data: the float network.
        images: calibration, one array of samples.
        folder: for its files.
        form: QDQ or QOperator.
        types: of activations and of weights.
        options: of ``quantize_static``.
    """
    source, target = folder / "float.onnx", folder / "quantized.onnx"
    source.write_bytes(data)
    name = onnx.load_from_string(data).graph.input[0].name
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(
                source, target, Reader(images, name), quant_format=form,
                activation_type=types[0], weight_type=types[1],
                **{"per_channel": True, **options},
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return target.read_bytes()


def opened(data: bytes) -> Any:
    """A session that computes every operator as it stands in the file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def first(session: Any, *inputs: Any) -> Any:
    """The first output of a session."""
    names = [port.name for port in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def reference(data: bytes, *inputs: Any) -> Any:
    """The first output of a file."""
    return first(opened(data), *inputs)
