"""One pass over a tensor of pixels × channels, a block of channels at a time.

    parallel task = a run of pixels
      group of pixels (the last ones singly), block of channels: the body

A group shares what the body reads for its channels. The last block overlaps its predecessor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.buffers import Symbols, product
from nybble.schedules.cpu.loops import PARALLEL_WORK
from nybble.schedules.kernel import Extent

Body = Callable[[Any, list[Any]], None]
RUN = 1 << 14  # elements of a task


def sweep(shape: Sequence[Extent], lanes: int, group: int, symbols: Symbols, body: Body) -> None:
    """Emits the loops.

    Args:
        shape: of the tensor; the last extent is static and at least ``lanes``.
        lanes: channels of a block.
        group: pixels that the body takes at once.
        symbols: the function's shape variables.
        body: emits code for (first channel, positions of the block in the flat tensor).
    """
    channels = int(shape[-1])
    pixels = product(shape[:-1], symbols)
    run = max(RUN // channels // group, 1) * group
    static = prod(extent for extent in shape if isinstance(extent, int))
    if isinstance(pixels, int):
        run = min(run, pixels)
    loop = T.parallel if static >= PARALLEL_WORK else T.serial
    with loop(
        -((-pixels) // run) if isinstance(pixels, int) else tirx.ceildiv(pixels, run)
    ) as task:
        first = T.Bind(task * run)
        count = T.Bind(tirx.min(run, pixels - first))

        def blocks(pixel: Any, taken: int) -> None:
            with T.serial(ceil(channels / lanes)) as block:
                channel = T.Bind(tirx.min(block * lanes, channels - lanes))
                at = T.Bind((first + pixel) * channels + channel)
                body(channel, [at + i * channels for i in range(taken)])

        with T.serial(tirx.floordiv(count, group)) as i:
            blocks(i * group, group)
        with T.serial(tirx.floormod(count, group)) as i:
            blocks(tirx.floordiv(count, group) * group + i, 1)
