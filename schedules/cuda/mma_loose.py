"""Words of the input that begin anywhere: of images with three channels, of odd rows.

`loose_piece` loads the aligned words around 16 bytes and shifts them, where the buffer is a whole
number of words. For others, and at the edges of images, there is `loose_word`: four loads of a
byte. Near the ends of the buffer the four bytes nearest to it are loaded and shifted; bytes in the
padding left and right of a line of the image are filled.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

BYTES = 4


def loose_piece(into: Any, at: int, words: Any, first: Any) -> None:
    """Emits the load of four words; what is beyond the end of the buffer may be anything.

    Args:
        into: registers.
        at: the first of four.
        words: the buffer, all of it in words.
        first: the first byte.
    """
    first = T.Bind(first)
    word, shift = T.Bind(first >> 2), T.Bind(T.Cast("uint32", tirx.bitwise_and(first, 3) * 8))
    around = T.alloc_buffer((5,), "uint32", scope="local", layout=None)
    for i in range(5):
        T.buffer_store(around, words[tirx.min(word + i, words.shape[0] - 1)], [i])
    for i in range(4):
        shifted = script.ptx["shf.r.wrap.b32"]
        T.evaluate(shifted(into[at + i], around[i], around[i + 1], shift))


def loose_word(
    source: Any, first: Any, inside: Any, edges: tuple[Any, int] | None, fill: int
) -> Any:
    """Four bytes of memory as ``uint32``.

    Args:
        source: flat bytes.
        first: the first byte; those before the buffer and behind it are not used.
        inside: whether they count at all (None: always).
        edges: their place in a line of the image, and its length; None where none is outside.
        fill: a word, for those that do not count.
    """
    first = T.Bind(first)
    at = T.Bind(tirx.max(tirx.min(first, source.shape[0] - BYTES), 0))
    word: Any = T.uint32(0)
    for byte in range(BYTES):
        index = at + byte
        if _is_tiny(source):
            index = tirx.min(index, source.shape[0] - 1)
        word = word | (T.Cast("uint32", source[index]) << T.uint32(8 * byte))
    word = T.Bind(_moved(word, first - at))
    if edges is None and inside is None:
        return word
    before, behind = (tirx.const(0, "int32") for _ in range(2))
    if edges is not None:
        before, behind = cut_of(-edges[0]), cut_of(edges[0] + BYTES - edges[1])
    if inside is not None:
        before = tirx.Select(inside, before, BYTES)
    mask = T.Bind(ones_but(before, left=True) & ones_but(behind, left=False))
    return (word & mask) | (T.uint32(fill) & (mask ^ T.uint32(0xFFFFFFFF)))


def _is_tiny(source: Any) -> bool:
    size = source.shape[0]
    return isinstance(size, int | tirx.IntImm) and int(size) < BYTES


def _moved(word: Any, by: Any) -> Any:
    """A word whose bytes move to where they are wanted: ``by`` bytes further down, or up."""
    by = T.Bind(by)
    down = T.Cast("uint32", tirx.min(tirx.max(by, 0), 3) * 8)
    up = T.Cast("uint32", tirx.min(tirx.max(-by, 0), 3) * 8)
    return (word >> down) << up


def cut_of(count: Any) -> Any:
    """Bytes of a word beyond an edge."""
    return T.Bind(tirx.min(tirx.max(count, 0), BYTES))


def ones_but(cut: Any, left: bool) -> Any:
    """All bits but those of the first (or last) ``cut`` bytes."""
    bits, ones = T.Cast("uint64", cut * 8), T.uint64(0xFFFFFFFF)
    return T.Cast("uint32", ones << bits if left else ones >> bits)
