"""The process that meets mutants one after the other: it tells what each came to, until it dies.

    python -m tests.fuzzing.child KIND SEEDS           numbers on stdin, one JSON line for each
    python -m tests.fuzzing.child KIND SEEDS NUMBER    one mutant, with its traceback

KIND is one of `walks.KINDS`, SEEDS the folder that `parent.Hunt` has filled.
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
    rng = Random(f"{kind} {number}")
    found: dict[str, Any] = {"number": number, "escaped": None}
    try:
        found["end"] = KINDS[kind](seeds, rng)
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


def main() -> None:
    """Answers numbers until the end of stdin, or the one that is given."""
    kind, folder, *only = sys.argv[1:]
    seeds = sorted(Path(folder).iterdir())
    faulthandler.enable()
    if only:
        seeds = [path.resolve() for path in seeds]
        with tempfile.TemporaryDirectory() as here:
            os.chdir(here)
            tempfile.tempdir = here
            found = meet(kind, int(only[0]), seeds)
            print(found.pop("escaped") or "", found, sep="\n")
            os.chdir("/")
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            print(json.dumps(meet(kind, int(line), seeds)), file=answers)


if __name__ == "__main__":
    main()
