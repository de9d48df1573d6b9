"""Every kernel, by preference: the first one that supports a problem is taken."""

from __future__ import annotations

from nybble.schedules.cpu import (
    amx,
    arm,
    bitserial,
    border,
    concat,
    conv,
    depthwise,
    depthwise_quads,
    elementwise,
    fallback,
    gemv,
    lookup,
    lut,
    pooling,
    rescale,
    riscv,
    weight_only,
    weight_only_generic,
    winograd,
)
from nybble.schedules.kernel import Kernel

KERNELS: tuple[Kernel, ...] = (
    *depthwise_quads.KERNELS,
    *depthwise.KERNELS,
    *lut.KERNELS,
    *gemv.KERNELS,
    *amx.KERNELS,
    *winograd.KERNELS,
    *conv.KERNELS,
    *bitserial.KERNELS,
    *arm.KERNELS,
    *riscv.KERNELS,
    *weight_only.KERNELS,
    weight_only_generic.WEIGHT_ONLY,
    fallback.CONV2D,
    fallback.LINEAR,
    *rescale.KERNELS,
    elementwise.REQUANTIZE,
    elementwise.ADD,
    *lookup.KERNELS,
    elementwise.TABLE,
    border.QUANTIZE,
    elementwise.QUANTIZE,
    elementwise.DEQUANTIZE,
    pooling.MAX_POOL2D,
    pooling.SUM_POOL2D,
    concat.CONCAT,
)
