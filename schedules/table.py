"""Every kernel, by preference: the first one that supports a problem is taken."""

from __future__ import annotations

from nybble.schedules.cpu import border, conv, depthwise, elementwise, fallback, pooling
from nybble.schedules.kernel import Kernel

KERNELS: tuple[Kernel, ...] = (
    *depthwise.KERNELS,
    *conv.KERNELS,
    fallback.CONV2D,
    fallback.LINEAR,
    elementwise.REQUANTIZE,
    elementwise.ADD,
    border.QUANTIZE,
    elementwise.QUANTIZE,
    elementwise.DEQUANTIZE,
    pooling.MAX_POOL2D,
    pooling.SUM_POOL2D,
)
