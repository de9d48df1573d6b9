"""Files of JSON objects, one a line: several processes append at once, and a crash may tear one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Object = dict[str, Any]
TORN, CORRUPT = "torn", "corrupt"


def append(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines, which are on the disk when this returns; what a crash has torn stays apart.

    The file is made if it is not there, also where there is nothing to add.

    Raises:
        OSError: the file cannot be written, or only in part.
    """
    data = _text(objects)
    with _locked(path) as file:
        end = file.seek(0, os.SEEK_END)
        if data and end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            data = b"\n" + data
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def read(path: Path, skipped: Counter[str] | None = None) -> Iterator[Object]:
    """The objects of a file in order.

    Args:
        path: of the file.
        skipped: is told how many lines are `TORN` (the last one, cut off) or `CORRUPT`.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        with suppress(OSError):  # a file system without locks: what is half written looks torn
            fcntl.flock(file, fcntl.LOCK_SH)  # else nobody is in the middle of a line
        data = file.read()
    yield from _objects(data, Counter() if skipped is None else skipped)


def rewrite(path: Path, change: Callable[[list[Object], Counter[str]], Iterable[Object]]) -> None:
    """Replaces a file whole or not at all; who appends meanwhile waits, and nothing is lost.

    Args:
        path: of a file that exists.
        change: makes the new objects of the old ones; lines that were skipped are gone.

    Raises:
        OSError: the file or its folder cannot be written.
    """
    with _locked(path) as file:
        file.seek(0)
        skipped = Counter[str]()
        objects = list(_objects(file.readall(), skipped))
        replace(path, change(objects, skipped), os.fstat(file.fileno()).st_mode & 0o777)


def replace(path: Path, objects: Iterable[Mapping[str, Any]], mode: int = 0o644) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    whole = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_text(objects))
            file.flush()
            os.fsync(file.fileno())
        whole.chmod(mode)
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[Any]:
    """The file, made if it is not there, for one process at a time."""
    while True:
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = path.stat().st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if current:  # else it was replaced while this process waited
                yield file
                return


def _text(objects: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(one)}\n" for one in objects).encode()


def _objects(data: bytes, skipped: Counter[str]) -> Iterator[Object]:
    *lines, last = data.split(b"\n")
    for line in lines:
        found = _object(line)
        if found is not None:
            yield found
        elif line.strip():
            skipped[CORRUPT] += 1
    found = _object(last)  # without a line's end: complete by luck, or cut off
    if found is not None:
        yield found
    elif last.strip():
        skipped[TORN] += 1


def _object(line: bytes) -> Object | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
