"""Convolution, linear and depthwise kernels of AArch64, from the templates that x86 has.

Weights below 8 bits lie packed and are decoded a panel at a time, as there.
"""

from __future__ import annotations

from nybble.schedules.cpu import conv, depthwise
from nybble.schedules.cpu.dot_arm import FMA, MLAL, MULL, SDOT, USDOT

KERNELS = (*depthwise.families((MLAL, FMA)), *conv.families((USDOT, SDOT, MULL, FMA)))
"""By preference: i8mm before dotprod before plain NEON."""
