"""One progress count over several phases of work, each of which counts for itself."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], None]


class Phases:
    """Adds up phases; the size of one that has not begun is taken to be the latest one's.

    Args:
        progress: called with (steps done, steps in all) over all phases; None to report nothing.
        count: how many phases there will be.
    """

    def __init__(self, progress: Progress | None, count: int):
        self._progress, self._count = progress, count
        self._sizes: list[int] = []

    def begin(self) -> Progress | None:
        """The next phase's own progress function."""
        if self._progress is None:
            return None
        self._sizes.append(0)
        return self._report

    def _report(self, done: int, of: int | None) -> None:
        assert self._progress is not None
        self._sizes[-1] = of or done
        before = sum(self._sizes[:-1])
        later = (self._count - len(self._sizes)) * self._sizes[-1]
        self._progress(before + done, before + self._sizes[-1] + later)
