"""Model in: ONNX and torch into float Relax."""

import nybble.ir as ir  # first: brings TVM without torch
