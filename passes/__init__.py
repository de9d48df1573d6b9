"""Relax to Relax: canonicalize, calibrate, quantize, lower to integers. One file a pass.

`pipeline.canonicalize`, `calibrate.calibrate`, `pipeline.quantize` and `pipeline.to_integer` are
the four steps of the walk; `pipeline` lists the passes of each. Decisions are made before
rewriting: `plan` says where the borders go, `regions` finds what one integer kernel computes.
"""

from nybble import ir as ir  # first: brings TVM without torch
