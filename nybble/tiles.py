"""AMX's tile registers: Linux gives them to a process that asks, once for all of its threads.

A library compiled for them asks by itself when it is loaded (`ASKING`), for C++ too.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

FEATURES = frozenset(("amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "amx_complex"))
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA

ASKING = """\
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux gives AMX's tile registers to a process that asks: ARCH_REQ_XCOMP_PERM, XTILEDATA. */
__attribute__((constructor)) static void nybble_ask_for_tiles(void) {
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0)
    fprintf(stderr, "nybble: Linux refuses AMX's tile registers: %s. "
            "This library's kernels will crash; compile for x86-64-v4-vnni.\\n", strerror(errno));
}
"""
"""C source of a constructor for libraries whose kernels use tiles."""


def available(features: frozenset[str]) -> frozenset[str]:
    """The features that code may use: without AMX where Linux refuses the tile registers.

    Args:
        features: of the CPU, as Linux spells them.
    """
    return features - FEATURES if features & FEATURES and refusal() else features


@cache
def refusal() -> str:
    """Asks for the tile registers; why Linux refuses them, empty when it grants them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0:
        return ""
    return os.strerror(ctypes.get_errno())
