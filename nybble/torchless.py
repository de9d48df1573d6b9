"""Importing TVM without importing torch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_torch() -> Iterator[None]:
    """Makes ``import torch`` fail inside the block, unless torch is loaded already.

    TVM's ffi tries torch first and takes a failure for "not installed".
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own mark for "no such module"
    try:
        yield
    finally:
        del sys.modules["torch"]
