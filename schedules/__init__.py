"""Integer module to TensorIR: choose a kernel per layer, pack its weights, emit its code."""

import nybble.ir as ir  # first: brings TVM without torch
