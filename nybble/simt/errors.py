"""What the interpreter refuses: each error names kernel, place, thread and block."""

from __future__ import annotations

from nybble.errors import NybbleError


class SimtError(NybbleError):
    """A kernel did what the CUDA programming model does not allow, or what is not modelled."""


class OutOfBoundsError(SimtError):
    """An access outside its buffer."""


class UninitializedError(SimtError):
    """A read of memory or a register that nothing was written to."""


class RaceError(SimtError):
    """Two threads touch the same bytes, one writes, and nothing orders them."""


class InFlightError(SimtError):
    """Data of an asynchronous copy or product used before the wait for it."""


class DivergenceError(SimtError):
    """A barrier or a warp-wide instruction that not all of its threads reach together."""


class MisalignedError(SimtError):
    """An address that is no multiple of the access's width."""


class DeadlockError(SimtError):
    """Every warp waits, and none can go on."""


class UnsupportedError(SimtError):
    """TensorIR, an instruction or an injected function without a meaning here."""
