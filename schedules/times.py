"""Times of a layer's candidates with the decisions that are recorded for them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import median

from nybble.schedules.kernel import Problem
from nybble.schedules.replay import Default, Replay


def tuned(
    rivals: Sequence[Default], seconds: Sequence[float], problem: Problem, replay: Replay
) -> list[float]:
    """Measured times, and where decisions are recorded their ratio times the reference's.

    Args:
        rivals: kernels, and the layer as each one sees it.
        seconds: of each with default decisions.
        problem: the layer, with its weights in their own width.
        replay: records of the target.
    """
    measured = {rival.name: time for rival, time in zip(rivals, seconds, strict=True)}
    found = []
    for rival, untuned in zip(rivals, seconds, strict=True):
        match = next(replay.matches(rival.kernel, rival.problem, problem))
        record = match.record if match.kind == "exact" else None
        same = record is not None and record.threads == (replay.threads or 1)
        if record is None or record.reference not in measured or not same:
            found.append(untuned)
        else:
            found.append(min(untuned, record.ratio * measured[record.reference]))
    return found


def recorded(rivals: Sequence[Default], problem: Problem, replay: Replay) -> list[float]:
    """The times of records alone, for machines that are not at hand; infinite where there is none.

    The reference ran in turns with every candidate: the median of its times is the layer's scale.

    Args:
        rivals: kernels, and the layer as each one sees it.
        problem: the layer, with its weights in their own width.
        replay: records of the target.
    """
    scales = [record.seconds / record.ratio for record in replay.exact(problem)]
    found = []
    for rival in rivals:
        match = next(replay.matches(rival.kernel, rival.problem, problem))
        known = scales and match.kind == "exact" and match.ratio is not None
        found.append(match.ratio * median(scales) if known and match.ratio else inf)
    return found
