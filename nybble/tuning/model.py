"""The cost model: boosted trees that rank candidates by what was measured of others.

They learn the logarithm of the ratio to the reference, of all tasks together: layers alike in size
are alike in what suits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from scipy import stats

from nybble.tuning.features import Features

ENOUGH = 24  # measured candidates from which on the trees are asked
ROUNDS = 120
FOLDS = 5
FEW = 8  # candidates of a task below which their ranks say nothing
SETTINGS = {
    "objective": "reg:squarederror", "max_depth": 6, "eta": 0.12, "subsample": 0.8,
    "colsample_bytree": 0.7, "min_child_weight": 1.0, "nthread": 1, "verbosity": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A measured candidate.

    Attributes:
        task: its task's key.
        features: of the candidate.
        ratio: of its time to the reference's.
    """

    task: str
    features: Features
    ratio: float


class CostModel:
    """Boosted trees over candidates' features.

    Args:
        seed: of the trees' sampling.

    Attributes:
        is_fit: whether `predict` may be asked.
    """

    def __init__(self, seed: int = 0):
        self._seed = seed
        self._names: list[str] = []
        self._trees: Any = None

    @property
    def is_fit(self) -> bool:
        """Whether there was enough to learn from."""
        return self._trees is not None

    def fit(self, samples: Sequence[Sample]) -> None:
        """Learns from scratch; too few samples are left aside."""
        if len(samples) < ENOUGH:
            return
        self._names = sorted({name for sample in samples for name in sample.features})
        self._trees = self._trained(samples)

    def predict(self, rows: Sequence[Features]) -> NDArray[np.float32]:
        """The logarithm of each candidate's ratio, about."""
        if not rows:
            return np.zeros(0, np.float32)
        found: NDArray[np.float32] = self._trees.predict(xgboost.DMatrix(self._matrix(rows)))
        return found

    def correlation(self, samples: Sequence[Sample]) -> float | None:
        """Rank correlation of predicted with measured ratios, each predicted by trees without it.

        Args:
            samples: measured candidates; tasks with few of them do not count.

        Returns:
            Spearman's coefficient within tasks, averaged over their candidates; None with too few.
        """
        if len(samples) < 2 * ENOUGH:
            return None
        self._names = sorted({name for sample in samples for name in sample.features})
        order = np.random.default_rng(self._seed).permutation(len(samples))
        predicted = np.zeros(len(samples))
        for fold in range(FOLDS):
            out = order[fold::FOLDS]
            rest = [samples[i] for i in np.setdiff1d(order, out)]
            matrix = xgboost.DMatrix(self._matrix([samples[i].features for i in out]))
            predicted[out] = self._trained(rest).predict(matrix)
        return _within_tasks(samples, predicted)

    def _trained(self, samples: Sequence[Sample]) -> Any:
        ratios = np.array([sample.ratio for sample in samples])
        data = xgboost.DMatrix(
            self._matrix([sample.features for sample in samples]),
            label=np.log(ratios),
            weight=np.clip(1 / ratios, 0.1, 4),  # what is slow need not be told apart
        )
        return xgboost.train({**SETTINGS, "seed": self._seed}, data, ROUNDS)

    def _matrix(self, rows: Sequence[Features]) -> NDArray[np.float32]:
        """(rows, features); what a candidate does not have is missing."""
        nothing = float("nan")
        return np.array([[row.get(n, nothing) for n in self._names] for row in rows], np.float32)


def _within_tasks(samples: Sequence[Sample], predicted: NDArray[np.float64]) -> float | None:
    measured = np.array([sample.ratio for sample in samples])
    tasks = np.array([sample.task for sample in samples])
    found, weights = [], []
    for task in np.unique(tasks):
        mine = tasks == task
        if mine.sum() >= FEW:
            varies = np.ptp(predicted[mine]) > 0 and np.ptp(measured[mine]) > 0
            pair = predicted[mine], measured[mine]
            found.append(stats.spearmanr(*pair).statistic if varies else 0.0)
            weights.append(int(mine.sum()))
    return float(np.average(found, weights=weights)) if found else None
