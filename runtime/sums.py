"""Extents that are sums of open sizes: ``past + length`` of a decoder with caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nybble.runtime.manifest import Port

SIGN = " + "


def addends(extent: int | str) -> list[str]:
    """The names that an extent is the sum of; none for every other extent."""
    parts = extent.split(SIGN) if isinstance(extent, str) else []
    return parts if len(parts) > 1 and all(map(str.isidentifier, parts)) else []


def is_kept(extent: int | str, size: int, sizes: Mapping[str, int]) -> bool:
    """Whether a size is what its sum asks for; every other extent asks for nothing."""
    parts = addends(extent)
    return not parts or (sizes.keys() >= set(parts) and sum(map(sizes.__getitem__, parts)) == size)


def appended(ports: Sequence[Port]) -> set[str]:
    """Sizes that the network only appends others to, so that they may be 0: a cache's.

    Args:
        ports: the outputs.
    """
    every = [extent for port in ports for extent in port.shape]
    return {name for extent in every for name in addends(extent)}.difference(map(str, every))
