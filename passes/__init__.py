"""Relax to Relax: canonicalize, calibrate, quantize, lower to integers. One file a pass."""

import nybble.ir as ir  # first: brings TVM without torch
