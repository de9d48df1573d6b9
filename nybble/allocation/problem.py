"""An allocation problem in arrays: groups of tied layers, options, losses, costs and limits."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.errors import AllocationError, near, near_pattern

Width = Any  # hashable: bits, "ternary", a pair of both; Mapping is invariant in its key
Table = Mapping[str, Mapping[Width, float]]
Pairs = Mapping[tuple[tuple[str, Width], tuple[str, Width]], float]
Array = NDArray[np.float64]
TOLERANCE = 1e-9  # relative: sums of the same costs in another order are the same


@dataclass(frozen=True)
class Problem:
    """One option is to be chosen for every group.

    Options are numbered through all groups: those of group g are ``first[g]:first[g + 1]``.

    Attributes:
        groups: the layers that share a choice, in order of their first layer.
        widths: of every option.
        first: first option of each group, and the number of options.
        loss: of every option.
        pairs: symmetric matrix of what two options lose beyond the sum of both; None without.
        costs: name -> cost of every option.
        limits: name -> the most that the chosen options may cost.
        order: the layers as the user ordered them.
    """

    groups: tuple[tuple[str, ...], ...]
    widths: tuple[Width, ...]
    first: tuple[int, ...]
    loss: Array
    pairs: Array | None
    costs: dict[str, Array]
    limits: dict[str, float]
    order: tuple[str, ...]

    def options(self, group: int) -> range:
        """The options of a group."""
        return range(self.first[group], self.first[group + 1])

    def objective(self, chosen: Sequence[int]) -> float:
        """The loss of a choice, one option for each group."""
        picked = list(chosen)
        total = float(self.loss[picked].sum())
        if self.pairs is not None:
            total += float(self.pairs[np.ix_(picked, picked)].sum()) / 2
        return total

    def spent(self, chosen: Sequence[int]) -> dict[str, float]:
        """What a choice costs."""
        return {name: float(cost[list(chosen)].sum()) for name, cost in self.costs.items()}

    def fits(self, chosen: Sequence[int]) -> bool:
        """Whether a choice keeps all limits."""
        spent = self.spent(chosen)
        return all(spent[name] <= loosened(limit) for name, limit in self.limits.items())

    def reach(self, name: str) -> tuple[float, float]:
        """The least and the most that any choice costs."""
        each = [self.costs[name][list(self.options(g))] for g in range(len(self.groups))]
        return float(sum(c.min() for c in each)), float(sum(c.max() for c in each))


class Limit(float):
    """A limit as it stands, even between 0 and 1 (`limit_of`): seconds, for example."""


def loosened(limit: float) -> float:
    """A limit that forgives the rounding of sums."""
    return limit + TOLERANCE * abs(limit)


def problem_of(
    sensitivity: Any,
    costs: Mapping[str, Table],
    budget: Mapping[str, float],
    ties: Iterable[Iterable[str]] = (),
    fixed: Mapping[str, Width] | None = None,
) -> Problem:
    """Checks what the user gave and brings it to arrays.

    Args:
        sensitivity: {layer: {width: loss}}, or an object with such ``losses`` and with ``pairs``
            {((layer, width), (layer, width)): loss beyond the sum of both}.
        costs: {cost: {layer: {width: value}}}.
        budget: {cost: limit}; `limit_of` says what numbers mean.
        ties: layers that must agree, as groups of names.
        fixed: {shell-style pattern of layer names: the only width allowed}; the last match wins.

    Raises:
        AllocationError: the tables do not go together, a name is unknown, a number is not finite,
            or tied layers have no width in common.
    """
    losses: Table = getattr(sensitivity, "losses", sensitivity)
    pairs: Pairs | None = getattr(sensitivity, "pairs", None)
    _check_tables(losses, costs, budget)
    allowed = _allowed(losses, fixed or {})
    groups = _groups(losses, ties)
    choices = [_common(group, allowed) for group in groups]
    first = tuple(np.cumsum([0, *map(len, choices)]).tolist())
    flat = [(group, w) for group, widths in zip(groups, choices, strict=True) for w in widths]
    matrix = _matrix(pairs, losses, flat) if pairs else None
    loss = _summed(losses, flat)
    if matrix is not None:  # pairs inside a tied group are always chosen together
        loss = loss + np.diag(matrix) / 2
        np.fill_diagonal(matrix, 0)
    problem = Problem(
        tuple(groups), tuple(w for _, w in flat), first, loss, matrix,
        {name: _summed(table, flat) for name, table in costs.items()}, {}, tuple(losses),
    )  # fmt: skip
    limits = {name: limit_of(problem, name, value) for name, value in budget.items()}
    return replace(problem, limits=limits)


def limit_of(problem: Problem, name: str, value: Any) -> float:
    """What a number in a budget means.

    A float from 0 to 1 is a share of the way from the cheapest choice to the dearest, unless it is
    itself what some choice may cost. Everything else, a `Limit` above all, is taken as it stands.

    Raises:
        AllocationError: the number is NaN or negative.
    """
    if not value >= 0:
        raise AllocationError(f"budget: {name}={value!r} is no limit. Give a number from 0 up.")
    low, high = problem.reach(name)
    is_share = isinstance(value, float) and not isinstance(value, Limit) and value <= 1
    if is_share and not low <= value <= high:
        return low + value * (high - low)
    return float(value)


def _check_tables(losses: Table, costs: Mapping[str, Table], budget: Mapping[str, float]) -> None:
    if not losses:
        raise AllocationError("sensitivity: there is no layer to allocate.")
    for name in budget:
        if name not in costs:
            raise AllocationError(
                f"budget: there are no costs '{name}'{near(name, costs)}. "
                f"Costs are given for: {', '.join(costs) or 'nothing'}."
            )
    for title, table in [("sensitivity", losses), *((f"costs '{n}'", t) for n, t in costs.items())]:
        for layer, widths in losses.items():
            missing = [w for w in widths if w not in table.get(layer, {})]
            if missing or not widths:
                raise AllocationError(
                    f"{title}: layer '{layer}' has no value for the widths {missing or 'at all'}, "
                    "which its sensitivity has. Every table needs every layer and width."
                )
            bad = [w for w in widths if not np.isfinite(table[layer][w])]
            if bad:
                raise AllocationError(f"{title}: layer '{layer}', width {bad[0]}: not finite.")


def _allowed(losses: Table, fixed: Mapping[str, Width]) -> dict[str, list[Width]]:
    allowed = {layer: list(widths) for layer, widths in losses.items()}
    for pattern, width in fixed.items():
        matched = [layer for layer in losses if fnmatch.fnmatchcase(layer, pattern)]
        if not matched:
            raise AllocationError(
                f"The pattern '{pattern}' matches no layer{near_pattern(pattern, losses)}. "
                f"The layers are: {', '.join(losses)}."
            )
        for layer in matched:
            if width not in losses[layer]:
                raise AllocationError(
                    f"Layer '{layer}' cannot be fixed at {width}: its widths are "
                    f"{', '.join(map(str, losses[layer]))}."
                )
            allowed[layer] = [width]
    return allowed


def _groups(losses: Table, ties: Iterable[Iterable[str]]) -> list[tuple[str, ...]]:
    """Layers that are tied, directly or through others, in the order of the table."""
    leader = {layer: layer for layer in losses}

    def find(layer: str) -> str:
        while leader[layer] != layer:
            layer = leader[layer]
        return layer

    for tied in ties:
        names = list(tied)
        for name in names:
            if name not in leader:
                raise AllocationError(f"ties: there is no layer '{name}'{near(name, losses)}.")
            leader[find(name)] = find(names[0])
    members: dict[str, list[str]] = {}
    for layer in losses:
        members.setdefault(find(layer), []).append(layer)
    return [tuple(layers) for layers in members.values()]


def _common(group: tuple[str, ...], allowed: Mapping[str, Sequence[Width]]) -> list[Width]:
    widths = [w for w in allowed[group[0]] if all(w in allowed[layer] for layer in group)]
    if not widths:
        raise AllocationError(
            f"The tied layers {', '.join(group)} have no width in common: "
            f"{'; '.join(str(list(allowed[layer])) for layer in group)}."
        )
    return widths


def _summed(table: Table, flat: Iterable[tuple[tuple[str, ...], Width]]) -> Array:
    return np.array([sum(float(table[layer][w]) for layer in group) for group, w in flat])


def _matrix(pairs: Pairs, losses: Table, flat: Sequence[tuple[tuple[str, ...], Width]]) -> Array:
    """The pairs between options; on the diagonal twice what a group's own layers lose together."""
    place = {(layer, w): i for i, (group, w) in enumerate(flat) for layer in group}
    matrix = np.zeros((len(flat), len(flat)))
    for ends, value in pairs.items():
        for layer, w in ends:
            if layer not in losses or w not in losses[layer]:
                raise AllocationError(f"pairs: there is no layer '{layer}' of width {w}.")
        i, j = (place.get(end) for end in ends)
        if i is None or j is None:  # an option that ties or fixed widths rule out
            continue
        matrix[i, j] += value
        matrix[j, i] += value
    return matrix
