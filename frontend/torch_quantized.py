"""Graphs that torch has quantized (PT2E): ``quantized_decomposed`` operators as borders.

They are known by name, because torch registers them only once somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload

from nybble.frontend import quantized
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused
from nybble.frontend.stored import affine
from nybble.ir import numerics

LIBRARY = "quantized_decomposed"


def converter(target: Any) -> Callable[..., Value] | None:
    """The translation of a quantized operator, None for any other."""
    if not isinstance(target, OpOverload) or target.namespace != LIBRARY:
        return None
    return _CONVERTERS.get(target.name().partition("::")[2].partition(".")[0])


def register() -> None:
    """Makes torch know the operators, so that it can read a file that holds them."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401, PLC0415  (a second, seldom needed)


def _name_of(dtype: torch.dtype) -> str:
    return quantized.check_width(str(dtype).removeprefix("torch."))


def _quantize_per_tensor(
    build: Builder, name: str, x: Value, scale: Any, zero_point: Any, *bounds_dtype: Any
) -> Value:
    """Bounds narrower than the type are clipped to first, which gives the same integers."""
    lo, hi, dtype = bounds_dtype
    on, held = _single(scale, zero_point), _name_of(dtype)
    if (int(lo), int(hi)) != numerics.limits(held):
        step, zero = float(on.scale), int(on.zero_point)
        x = build.clip(x, (int(lo) - zero) * step, (int(hi) - zero) * step, f"{name}.clip")
    return quantized.quantize(build, x, on, held, name)


def _dequantize_per_tensor(
    build: Builder, name: str, q: Value, scale: Any, zero_point: Any, *_: Any, **options: Any
) -> Value:
    _check_float(options)
    return quantized.dequantize(build, q, _single(scale, zero_point), name)


def _dequantize_per_channel(
    build: Builder, name: str, q: Value, scales: Any, zero_points: Any, axis: int, *_: Any,
    **options: Any,
) -> Value:  # fmt: skip
    _check_float(options)
    zeros = None if zero_points is None else build.weights(zero_points, "zero point")
    on = affine(build.weights(scales, "scale"), zeros, axis)
    return quantized.dequantize(build, q, on, name)


def _single(scale: Any, zero_point: Any) -> Any:
    values = [np.asarray(v) for v in (scale, zero_point) if isinstance(v, int | float | np.ndarray)]
    if len(values) != 2 or any(v.size != 1 for v in values):
        raise Refused("its scale or zero point is computed by the network; it must be a constant")
    return affine(values[0].reshape(()), values[1].reshape(()).astype(np.int32))


def _check_float(options: dict[str, Any]) -> None:
    if options.get("out_dtype") not in (None, torch.float32):
        raise Refused(f"dequantizes to {options['out_dtype']}; only float32 is supported")


_CONVERTERS: dict[str, Callable[..., Value]] = {
    "quantize_per_tensor": _quantize_per_tensor,
    "dequantize_per_tensor": _dequantize_per_tensor,
    "dequantize_per_channel": _dequantize_per_channel,
}
