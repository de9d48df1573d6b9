"""The process that meets mutants one after the other: it tells what each came to, until it dies.

    python -m tests.fuzzing.child SEEDS              "KIND NUMBER" on stdin, a JSON line for each
    python -m tests.fuzzing.child SEEDS KIND NUMBER  one mutant again, with its traceback

KIND is one of `walks.KINDS`; SEEDS is the folder that `parent.Hunt` has filled, one in it for each.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

from nybble.errors import NybbleError
from tests.fuzzing.walks import KINDS

MEMORY = 12 << 30
"""Bytes of address space: a mutant that asks for more than there is must be refused."""


def meet(kind: str, number: int, seeds: list[Path]) -> dict[str, Any]:
    """What one mutant came to, and what it took."""
    before, start = _listing(), time.process_time()
    found: dict[str, Any] = {"escaped": None}
    try:
        found["end"] = KINDS[kind](seeds, Random(f"{kind} {number}"))
    except NybbleError as error:
        found["end"] = type(error).__name__
    except Exception as error:  # noqa: BLE001  (what escapes is what we are here for)
        found["end"], found["escaped"] = type(error).__name__, traceback.format_exc()
    found["seconds"] = time.process_time() - start
    found["left"] = sorted(_listing() - before)
    return found


def _listing() -> set[str]:
    """Files here and in the folder of temporary files."""
    folders = (Path.cwd(), Path(tempfile.gettempdir()))
    return {str(path) for folder in folders for path in folder.rglob("*")}


def _again(seeds: list[Path], kind: str, number: int) -> None:
    """One mutant, in a folder that vanishes."""
    with tempfile.TemporaryDirectory() as here:
        os.chdir(here)
        tempfile.tempdir = here
        found = meet(kind, number, seeds)
        os.chdir("/")
    sys.stdout.write(f"{found.pop('escaped') or ''}\n{found}\n")


def _answer(seeds: dict[str, list[Path]]) -> None:
    """Meets whatever stdin names."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            kind, number = line.split()
            answers.write(json.dumps(meet(kind, int(number), seeds[kind])) + "\n")


def main() -> None:
    """Answers until the end of stdin, or meets the one that is given."""
    folder, *only = sys.argv[1:]
    faulthandler.enable()
    seeds = {kind.name: sorted(kind.resolve().iterdir()) for kind in Path(folder).iterdir()}
    if only:
        _again(seeds[only[0]], only[0], int(only[1]))
    else:
        _answer(seeds)


if __name__ == "__main__":
    main()
