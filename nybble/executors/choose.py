"""Which executor ``--workers`` names."""

from __future__ import annotations

import os

from nybble.errors import NybbleError
from nybble.executors.cluster import RayCluster
from nybble.executors.interface import Executor
from nybble.executors.local import Processes

RAY = "ray"


def executor(workers: str | None) -> Executor:
    """The executor of that name.

    Args:
        workers: a number of processes of this machine; None for one a core; ``ray`` for a Ray
            cluster of this machine, ``ray://host:10001`` for another one's client port,
            ``ray:host:6379`` for one that this machine is a node of.

    Raises:
        NybbleError: it is something else, Ray is not installed, or no cluster answers.
    """
    if workers is None:
        return Processes(len(os.sched_getaffinity(0)))
    if workers.isdecimal() and int(workers) > 0:
        return Processes(int(workers))
    if workers == RAY:
        return RayCluster()
    if workers.startswith(f"{RAY}://"):
        return RayCluster(workers)
    if workers.startswith(f"{RAY}:"):
        return RayCluster(workers.removeprefix(f"{RAY}:"))
    raise NybbleError(
        f"--workers {workers}: expected a number of processes, ray, ray://host:10001 or "
        "ray:host:6379."
    )
