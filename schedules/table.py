"""Every kernel, by preference: the first one of its kind of target that supports a problem."""

from __future__ import annotations

from nybble.schedules.cpu import (
    amx,
    arm,
    arranged,
    bitserial,
    border,
    concat,
    conv,
    depthwise,
    depthwise_quads,
    dynamic,
    elementwise,
    fallback,
    gemv,
    lookup,
    lut,
    matmul,
    matmul_generic,
    norms,
    pooling,
    resampling,
    rescale,
    riscv,
    softmax,
    stock,
    trits,
    weight_only,
    weight_only_generic,
    winograd,
)
from nybble.schedules.cuda import bitserial as cuda_bitserial
from nybble.schedules.cuda import concat as cuda_concat
from nybble.schedules.cuda import direct as cuda_direct
from nybble.schedules.cuda import dynamic as cuda_dynamic
from nybble.schedules.cuda import elementwise as cuda_elementwise
from nybble.schedules.cuda import matmul as cuda_matmul
from nybble.schedules.cuda import matmul_generic as cuda_matmul_generic
from nybble.schedules.cuda import mma as cuda_mma
from nybble.schedules.cuda import norms as cuda_norms
from nybble.schedules.cuda import pooling as cuda_pooling
from nybble.schedules.cuda import softmax as cuda_softmax
from nybble.schedules.cuda import weight_only as cuda_weight_only
from nybble.schedules.cuda import weight_only_wgmma as cuda_weight_only_wgmma
from nybble.schedules.cuda import wgmma as cuda_wgmma
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.kernel import Kernel
from nybble.schedules.target import Target

KERNELS: tuple[Kernel, ...] = (
    *bitserial.FIRST,
    *depthwise_quads.KERNELS,
    *depthwise.KERNELS,
    *winograd.LOW,
    *lut.KERNELS,
    trits.FAR,
    *gemv.KERNELS,
    trits.NEAR,
    *amx.KERNELS,
    *winograd.KERNELS,
    *arranged.KERNELS,
    *conv.KERNELS,
    *gemv.EIGHT_BITS,
    *bitserial.KERNELS,
    *arm.KERNELS,
    *riscv.KERNELS,
    *lut.PRODUCTS,
    *weight_only.KERNELS,
    weight_only_generic.WEIGHT_ONLY,
    *dynamic.KERNELS,
    fallback.CONV2D,
    fallback.LINEAR,
    *matmul.KERNELS,
    matmul_generic.MATMUL,
    *softmax.KERNELS,
    *norms.KERNELS,
    *rescale.KERNELS,
    elementwise.REQUANTIZE,
    elementwise.ADD,
    elementwise.MULTIPLY,
    *lookup.KERNELS,
    elementwise.TABLE,
    border.QUANTIZE,
    elementwise.QUANTIZE,
    elementwise.DEQUANTIZE,
    pooling.MAX_POOL2D,
    pooling.SUM_POOL2D,
    *resampling.KERNELS,
    concat.CONCAT,
    *stock.KERNELS,
)

CUDA: tuple[Kernel, ...] = (
    *cuda_bitserial.KERNELS,
    *cuda_wgmma.KERNELS,
    *cuda_mma.KERNELS,
    cuda_direct.CONV2D,
    cuda_direct.LINEAR,
    *cuda_weight_only_wgmma.KERNELS,
    *cuda_weight_only.KERNELS,
    cuda_matmul.MATMUL,
    cuda_matmul_generic.MATMUL,
    *cuda_softmax.KERNELS,
    *cuda_norms.KERNELS,
    *cuda_dynamic.KERNELS,
    *cuda_elementwise.KERNELS,
    *cuda_pooling.KERNELS,
    cuda_concat.CONCAT,
)


def of(target: Target) -> tuple[Kernel, ...]:
    """The kernels for a target's kind."""
    return CUDA if isinstance(target, CudaTarget) else KERNELS
