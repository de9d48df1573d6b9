"""A mixed-integer linear model for HiGHS: one binary per option, one of each group, the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np

from nybble.allocation.problem import Array, Problem, loosened
from nybble.errors import AllocationError

INFINITY = highspy.kHighsInf
EXACT = 1e-9  # HiGHS's own 1e-6 would let a choice overrun its limit


@dataclass
class Model:
    """Columns and rows as they are added.

    Attributes:
        cost: of each column.
        integer: whether each column is a binary; others lie in [0, infinity).
        rows: (columns, values, lower, upper) of each row.
    """

    cost: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    rows: list[tuple[Sequence[int], Sequence[float], float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, problem: Problem, loss: Array) -> Model:
        """The choice of one option for each group within the limits; the first columns."""
        model = cls(loss.tolist(), [True] * len(loss))
        for g in range(len(problem.groups)):
            options = problem.options(g)
            model.rows.append((options, [1.0] * len(options), 1.0, 1.0))
        for name, limit in problem.limits.items():
            unit = max(abs(limit), 1e-300)
            values = (problem.costs[name] / unit).tolist()
            model.rows.append((range(len(values)), values, -INFINITY, loosened(limit) / unit))
        return model

    def add_column(self, cost: float, integer: bool = False) -> int:
        """A further column; returns its number."""
        self.cost.append(cost)
        self.integer.append(integer)
        return len(self.cost) - 1

    def solve(
        self, seconds: float, start: Sequence[int] | None = None
    ) -> tuple[Array, float] | None:
        """Minimises.

        Args:
            seconds: how long to search.
            start: columns that are 1 in a known solution; the rest is completed.

        Returns:
            (values of the columns, proven lower bound of the objective), None where there is no
            solution.

        Raises:
            AllocationError: nothing was found in that time.
        """
        solver = highspy.Highs()
        solver.silent()
        for option, value in (
            ("mip_rel_gap", 0.0), ("mip_abs_gap", 0.0), ("time_limit", float(seconds)),
            ("mip_feasibility_tolerance", EXACT), ("primal_feasibility_tolerance", EXACT),
            ("threads", 1), ("random_seed", 0),
        ):  # fmt: skip
            solver.setOptionValue(option, value)
        scale = max(np.abs(self.cost).max(), 1e-300)  # HiGHS compares losses with absolute 1e-7
        solver.passModel(self._lp(scale))
        if start is not None:
            solver.setSolution(len(start), np.array(start, np.int32), np.ones(len(start)))
        solver.run()
        status, info = solver.getModelStatus(), solver.getInfo()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None
        if info.primal_solution_status != highspy.kSolutionStatusFeasible:
            raise AllocationError(
                f"The solver found no choice within {seconds:.0f} s: {status}. Give it more time, "
                "or fewer layers or widths."
            )
        bound = info.mip_dual_bound if any(self.integer) else info.objective_function_value
        return np.array(solver.getSolution().col_value), bound * scale

    def _lp(self, scale: float) -> highspy.HighsLp:
        lp = highspy.HighsLp()
        columns, integer = len(self.cost), np.array(self.integer)
        lp.num_col_, lp.num_row_ = columns, len(self.rows)
        lp.col_cost_ = np.array(self.cost) / scale
        lp.col_lower_ = np.zeros(columns)
        lp.col_upper_ = np.where(integer, 1.0, INFINITY)
        lp.row_lower_ = np.array([row[2] for row in self.rows])
        lp.row_upper_ = np.array([row[3] for row in self.rows])
        matrix = lp.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.start_ = np.cumsum([0, *(len(row[0]) for row in self.rows)]).astype(np.int32)
        matrix.index_ = np.concatenate([np.array(row[0], np.int32) for row in self.rows])
        matrix.value_ = np.concatenate([np.array(row[1], np.float64) for row in self.rows])
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(one)] for one in integer]
        return lp


def chosen(problem: Problem, values: Array) -> tuple[int, ...]:
    """The option of each group that a solution takes."""
    return tuple(
        max(problem.options(g), key=lambda option: float(values[option]))
        for g in range(len(problem.groups))
    )


def infeasible(problem: Problem) -> AllocationError:
    """Says which limits cannot be kept, and the nearest values that can."""
    model = Model.of(problem, np.zeros(len(problem.loss)))
    begin = len(problem.groups)
    for k in range(len(problem.limits)):
        columns, values, lower, upper = model.rows[begin + k]
        slack = model.add_column(1.0)
        model.rows[begin + k] = ([*columns, slack], [*values, -1.0], lower, upper)
    found = model.solve(seconds=10)
    assert found is not None  # with slack there is always a choice
    spent = problem.spent(chosen(problem, found[0]))
    over = {n: spent[n] for n, limit in problem.limits.items() if spent[n] > loosened(limit)}
    words = [
        f"{name}={problem.limits[name]:.6g} is below what can be reached"
        f"{' together with the others' if problem.reach(name)[0] <= problem.limits[name] else ''}"
        f"; the nearest is {value:.6g}"
        for name, value in over.items()
    ]
    return AllocationError(
        f"No allocation keeps the budget: {'; '.join(words)}. Raise it, or allow smaller widths."
    )
