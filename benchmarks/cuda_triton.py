"""Two products written in Triton, peers of `benchmarks.cuda_peers`; imported where Triton is.

integers   y = int8(scale · (x · wᵀ)), int32 sums
halves     y = x · wᵀ in half precision, weights of 4 bits with a scale for 128 of them
"""

# ruff: noqa: N803, PLR0913, PLR0917  (a kernel's parameters; capitals are constants of it)
import triton
import triton.language as tl

GROUP = 128
INTEGERS = ((128, 256, 128, 8, 3), (128, 128, 128, 4, 4), (64, 128, 128, 4, 4), (64, 64, 128, 4, 4))
HALVES = ((128, 4, 4), (64, 4, 5), (32, 4, 5))
"""Configurations: rows, channels, depth, warps and stages; channels, warps and stages."""


@triton.jit
def _integers(
    x,
    w,
    y,
    scale,
    m,
    n,
    k: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BAND: tl.constexpr,
):
    block = tl.program_id(0)
    down, across = tl.cdiv(m, M), tl.cdiv(n, N)
    band = block // (BAND * across)
    high = min(down - band * BAND, BAND)
    inside = block % (BAND * across)
    row = (band * BAND + inside % high) * M + tl.arange(0, M)
    column = (inside // high) * N + tl.arange(0, N)
    depth = tl.arange(0, K)
    left = x + (row % m)[:, None] * k + depth[None, :]
    right = w + (column % n)[None, :] * k + depth[:, None]
    total = tl.zeros((M, N), dtype=tl.int32)
    for _ in range(tl.cdiv(k, K)):
        total = tl.dot(tl.load(left), tl.load(right), total, out_dtype=tl.int32)
        left += K
        right += K
    kept = tl.minimum(tl.maximum(total.to(tl.float32) * scale, -128.0), 127.0)
    inside = (row[:, None] < m) & (column[None, :] < n)
    tl.store(y + row[:, None] * n + column[None, :], kept.to(tl.int8), mask=inside)


@triton.jit
def _halves(
    x, w, scales, y, m, n, k: tl.constexpr, M: tl.constexpr, N: tl.constexpr, HALF: tl.constexpr
):
    row = tl.program_id(1) * M + tl.arange(0, M)
    column = tl.program_id(0) * N + tl.arange(0, N)
    depth = tl.arange(0, HALF)
    left = x + (row % m)[:, None] * k + depth[None, :]
    right = w + (column % n)[None, :] * (k // 2) + depth[:, None]
    total = tl.zeros((M, N), dtype=tl.float32)
    for group in range(k // (2 * HALF)):
        packed = tl.load(right)
        low = (packed & 15).to(tl.float16) - 8.0
        high = (packed >> 4).to(tl.float16) - 8.0
        part = tl.dot(tl.load(left), low.to(tl.float16))
        part = tl.dot(tl.load(left + HALF), high.to(tl.float16), part)
        total += part * tl.load(scales + group * n + column % n)[None, :].to(tl.float32)
        left += 2 * HALF
        right += HALF
    inside = (row[:, None] < m) & (column[None, :] < n)
    tl.store(y + row[:, None] * n + column[None, :], total.to(tl.float16), mask=inside)


def integers(x, w, y, scale, config):
    """Stores to y (m, n): x (m, k) and w (n, k) int8; k divides the configuration's depth."""
    rows, channels, depth, warps, stages = config
    (m, k), n = x.shape, w.shape[0]
    blocks = triton.cdiv(m, rows) * triton.cdiv(n, channels)
    _integers[(blocks,)](
        x, w, y, scale, m, n, k, rows, channels, depth, 8, num_warps=warps, num_stages=stages
    )


def halves(x, w, scales, y, config):
    """Stores to y (m, n): x (m, k) float16, w (n, k / 2) uint8, scales (k / 128, n) float16.

    A byte holds weights 64 apart within their group of 128, the first one in its low half.
    """
    channels, warps, stages = config
    (m, k), n = x.shape, w.shape[0]
    rows = 16 if m <= 16 else 64
    grid = (triton.cdiv(n, channels), triton.cdiv(m, rows))
    _halves[grid](
        x, w, scales, y, m, n, k, rows, channels, GROUP // 2, num_warps=warps, num_stages=stages
    )
