"""Weights in files beside the model, mapped: what nobody looks at is never read."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.external_data_helper import ExternalDataInfo

MAPPED = {
    getattr(onnx.TensorProto, name)
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "BOOL", *(
        f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)))
}  # fmt: skip
"""Types whose elements lie in the file as they do in memory."""


def mapped(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """The values, read by the system when they are looked at.

    Args:
        tensor: of a type of `MAPPED`, with external data.
        folder: the model's.

    Raises:
        OSError: the file cannot be read.
        ValueError: it lies outside of the folder, or is too short.
    """
    info: Any = ExternalDataInfo(tensor)  # typed by what its fields are before it has read them
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    path, shape = (folder / info.location).resolve(), tuple(tensor.dims)
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"its data lies in '{info.location}', outside of the model's folder")
    offset, size = int(info.offset or 0), prod(shape) * dtype.itemsize
    held = int(info.length) if info.length is not None else path.stat().st_size - offset
    if size != held or min(shape, default=0) < 0 or offset + size > path.stat().st_size:
        raise ValueError(f"{held:,} bytes of '{info.location}' do not hold {dtype} {shape}")
    if not size:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)
