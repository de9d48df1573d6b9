"""NumPy meaning of convolutions and pools over three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Law = Callable[..., Any]


def _windows(
    x: Array, size: Sequence[int], strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], fill: float,
) -> Array:  # fmt: skip
    """Every window of (N, C, …) as trailing axes; ``padding`` is all begins, then all ends."""
    rank = len(size)
    pairs = [(0, 0), (0, 0), *zip(padding[:rank], padding[rank:], strict=True)]
    padded = np.pad(x, pairs, constant_values=fill)
    reach = [(s - 1) * d + 1 for s, d in zip(size, dilation, strict=True)]
    axes = tuple(range(2, 2 + rank))
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    starts = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    return view[(*starts, *(slice(None, None, d) for d in dilation))]


def conv3d(
    x: Array, w: Array, *, strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, **_: Any,
) -> Array:  # fmt: skip
    """float32 convolution of NCDHW by OIDHW."""
    view = _windows(x, w.shape[2:], strides, padding, dilation, 0)
    parts = [
        np.einsum("nczyxkji,ockji->nozyx", v, f, optimize=True)
        for v, f in zip(np.split(view, groups, 1), np.split(w, groups, 0), strict=True)
    ]
    return np.concatenate(parts, axis=1).astype(x.dtype)


def max_pool3d(
    x: Array, *, pool_size: Sequence[int], strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], **_: Any,
) -> Array:  # fmt: skip
    """Maximum over windows of NCDHW; padding never wins."""
    return np.asarray(
        _windows(x, pool_size, strides, padding, dilation, -np.inf).max(axis=(5, 6, 7))
    )


def avg_pool3d(
    x: Array, *, pool_size: Sequence[int], strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], count_include_pad: bool, **_: Any,
) -> Array:  # fmt: skip
    """Mean over windows of NCDHW; padding is counted only with ``count_include_pad``."""
    args = (pool_size, strides, padding, dilation, 0)
    total = _windows(x, *args).sum(axis=(5, 6, 7), dtype=np.float32)
    counted = np.ones_like(x[:1, :1])
    count = _windows(counted, *args).sum(axis=(5, 6, 7))
    return np.asarray(total / (np.prod(pool_size) if count_include_pad else count), np.float32)


OPS: dict[str, Law] = {
    "relax.nn.conv3d": conv3d,
    "relax.nn.max_pool3d": max_pool3d,
    "relax.nn.avg_pool3d": avg_pool3d,
}
