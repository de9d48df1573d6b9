"""Machine code of a kernel, counted by instruction."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from nybble.errors import NybbleError
from nybble.schedules.cuda import compile as cuda_compile
from nybble.schedules.cuda import nvcc
from nybble.schedules.cuda.nvcc import Usage
from tests.cuda.layers import gpu

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)")


@dataclass(frozen=True)
class Code:
    """Of all kernels of a function on one architecture.

    Attributes:
        counts: instructions by name: ``LDG.E.128.CONSTANT``.
        usage: what each kernel takes.
    """

    counts: Counter[str]
    usage: tuple[Usage, ...]

    def has(self, pattern: str) -> bool:
        """Whether there is an instruction that matches from its beginning on."""
        return any(re.match(pattern, name) for name in self.counts)


def code_of(function: Any, arch: str) -> Code:
    """Compiles a function for one architecture; skips the test where the tools are missing."""
    try:
        tools = nvcc.disassemblers()
    except NybbleError as error:
        pytest.skip(str(error))
    if tools is None:
        pytest.skip("needs cuobjdump and nvdisasm")
    target = gpu(arch)
    made = cuda_compile.device_code(function.with_attr("global_symbol", "layer"), target)
    text = nvcc.sass(made.binary, target.machine_codes[0])
    return Code(Counter(_INSTRUCTION.findall(text)), made.usage)


def check_registers(code: Code, threads: int, blocks: int) -> None:
    """Nothing lies in local memory, and so many blocks of so many threads fit a processor."""
    assert not code.has("LDL|STL"), code.counts
    for usage in code.usage:
        assert usage.spills == 0, usage
        assert usage.stack == 0, usage
    most = max(usage.registers for usage in code.usage)
    assert -(-most // 8) * 8 * threads * blocks <= 1 << 16, (most, threads, blocks)
