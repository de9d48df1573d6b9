"""``cpu.border``: quantize an NCHW image into NHWC, row by row.

    for image, row (parallel)
      for channel:  a vector of columns divided, rounded, clamped -> line[channel][column]
      for column:   the channels of line side by side -> out[row][column][channel]

The division and the rounding stay vectors; only bytes are transposed, and they are in cache.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from nybble.schedules.cpu import elementwise, loops
from nybble.schedules.kernel import Kernel, Knobs, Problem

NAME = "cpu.border"
TO_NHWC = (0, 2, 3, 1)
COLUMNS = 4096  # a line of a few channels stays within the first-level cache


def _supports(problem: Problem, _target: Any) -> str | None:
    if elementwise.axes_of(problem) != TO_NHWC:
        return "no permutation from NCHW to NHWC stands before it"
    width, channels = problem.inputs[0].shape[3], problem.inputs[0].shape[1]
    if not isinstance(width, int) or not isinstance(channels, int):
        return "the columns or the channels are symbolic"
    if width * channels > COLUMNS:
        return f"a row of {width} x {channels} values is longer than {COLUMNS}"
    axis = problem.attr("axis") % 4
    return None if axis == 3 else f"scales along axis {axis}, not along the channels"


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    x = loops.Symbols().tensor(problem.inputs[0], "x")
    n, channels, height, width = x.shape
    names = ("scale", "zero_point")
    constants = elementwise.vectors(names, problem.output.shape[3], {"scale": "float32"})

    def quantized(i: Any, y: Any, c: Any, z: Any) -> Any:
        read = elementwise.reader(constants, c)
        scale, zero_point = read("scale"), read("zero_point")
        return elementwise.quantized(x(i, c, y, z), scale, zero_point, problem.output.dtype)

    line = te.compute((n, height, channels, width), quantized, "line")
    out = te.compute((n, height, width, channels), lambda i, y, z, c: line(i, y, c, z), "out")
    sch = loops.function([x, *constants.values(), out])
    outer = sch.get_loops(sch.get_sblock("out"))[:2]
    rows = loops.parallel(sch, outer, loops.static_size(problem.output.shape))
    sch.compute_at(sch.get_sblock("line"), rows)
    columns = sch.get_loops(sch.get_sblock("line"))[-1]
    _, lanes = sch.split(columns, [None, loops.lanes_of(width)])
    sch.vectorize(lanes)
    sch.unroll(sch.get_loops(sch.get_sblock("out"))[-1])
    return sch.mod["main"]


QUANTIZE = Kernel(NAME, "quantize", _supports, elementwise.pack_border, _build)
