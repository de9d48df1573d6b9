"""Sound libraries, changed at random: bytes anywhere, or the manifest under a right checksum."""

from __future__ import annotations

import hashlib
import json
from random import Random
from typing import Any

from nybble.runtime.manifest import MAGIC, TRAILER_SIZE

NUMBERS = (0, 1, -1, 2, 4096, 2**31, 2**63, -(2**63), 1e308, 0.5)
VALUES: tuple[Any, ...] = (None, True, "", "x", [], {}, [1], {"x": 1}, "avx512f", *NUMBERS)


def damaged(data: bytes, rng: Random) -> bytes:
    """Bytes overwritten, cut off, removed, put in, doubled or exchanged."""
    place, length = rng.randrange(len(data)), rng.choice((1, 8, 64, 4096))
    kind = rng.randrange(7)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[place + length :]
    if kind == 2:
        return data[:place] + rng.randbytes(length) + data[place:]
    if kind == 3:
        return data[:place] + bytes(length) + data[place + length :]
    if kind == 4:
        return data + data[-length:]
    if kind == 5:  # in the trailer, which says how long everything is
        place = len(data) - 1 - rng.randrange(TRAILER_SIZE)
    changed = bytearray(data)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def resealed(data: bytes, rng: Random) -> bytes:
    """The library with a changed manifest and a checksum that fits it."""
    end = len(data) - TRAILER_SIZE
    length = int.from_bytes(data[end : end + 8], "little")
    text = data[end - length : end]
    if rng.random() < 0.2:
        place = rng.randrange(length)
        text = (
            text[:place] + rng.choice((b"", b"[", b"\xff", b"9" * 400, b"[" * 9999)) + text[place:]
        )
    else:
        values = json.loads(text)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change(values, rng)
        text = json.dumps(values).encode()
    head = data[: end - length] + text + len(text).to_bytes(8, "little")
    return head + hashlib.sha256(head).digest() + MAGIC


def _change(values: Any, rng: Random) -> None:
    """Somewhere inside: a value of another kind, a key too many or too few."""
    while True:
        inner = [v for v in _children(values) if isinstance(v, dict | list) and v]
        if not inner or rng.random() < 0.3:
            break
        values = rng.choice(inner)
    if not values:
        return
    key = rng.choice(list(values)) if isinstance(values, dict) else rng.randrange(len(values))
    kind = rng.randrange(4)
    if kind == 0:
        del values[key]
    elif kind == 1 and isinstance(values, dict):
        values["more"] = rng.choice(VALUES)
    elif kind == 2 and isinstance(values, list):
        values.append(rng.choice(VALUES))
    else:
        values[key] = rng.choice(VALUES)


def _children(values: Any) -> list[Any]:
    return list(values.values()) if isinstance(values, dict) else list(values)
