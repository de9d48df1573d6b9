"""PTX instructions as code: the table of all that have a meaning here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from nybble.simt import (
    barriers,
    copies,
    fences,
    matrices,
    mbarriers,
    scalars,
    tensors,
    transfers,
    warpgroups,
    warps,
)
from nybble.simt.codes import Code, Kind, Scope
from nybble.simt.issue import Issue
from nybble.simt.strand import Strand
from nybble.simt.values import Mask

Handler = Callable[[Issue, Strand, Mask], None]
_DO: dict[str, Handler] = {
    **matrices.INSTRUCTIONS,
    **copies.INSTRUCTIONS,
    **scalars.INSTRUCTIONS,
    **transfers.INSTRUCTIONS,
    **fences.INSTRUCTIONS,
    **barriers.INSTRUCTIONS,
    **mbarriers.INSTRUCTIONS,
    **tensors.INSTRUCTIONS,
    **warpgroups.INSTRUCTIONS,
    **warps.INSTRUCTIONS,
}
_WAIT: dict[str, Callable[[Issue, Strand, Mask], Iterator[None]]] = {
    **barriers.WAITS,
    **mbarriers.WAITS,
}
_NARROW = {"ld", "ld_vec", "st", "st_vec"}  # all others move multiples of 4 bytes


def instruction(scope: Scope, node: Any) -> Code:
    """Code for a call whose op is ``tirx.ptx.…``."""
    issue = Issue(scope, node)
    if issue.entry in _WAIT:
        return _waiting(scope, issue)
    do = _DO.get(issue.entry)
    if do is None:
        raise scope.refuse(f"the instruction {issue.text} ({issue.entry} in TVM's table)")
    scope.access(transfers.width_of(issue) if issue.entry in _NARROW else 4)

    if issue.entry.startswith("wgmma"):
        scope.wanted = warpgroups.WARPS  # each group has its own products on their way

    def run(s: Strand, m: Mask) -> None:
        inner = issue.active(s, m)
        if inner is None or inner.any():
            do(issue, s, inner)

    return Code(run, Kind.VARYING)


def _waiting(scope: Scope, issue: Issue) -> Code:
    wait = _WAIT[issue.entry]

    def run(s: Strand, m: Mask) -> Iterator[None]:
        inner = issue.active(s, m)
        if inner is None or inner.any():
            yield from wait(issue, s, inner)

    return scope.waiting(Code(run, Kind.VARYING, waits=True))
