"""Tuning: searches the knobs of every layer's kernels, measures, remembers what was best."""

import nybble.ir as _ir  # before anything imports TVM: it then comes without torch
