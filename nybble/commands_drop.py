"""What ``nybble compile --max-drop`` does: widths by the accuracy of deployed networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from nybble.commands_report import LABELS, evaluation_of
from nybble.errors import NybbleError
from nybble.evaluation import Ready, ready
from nybble.model import Model, Trial
from nybble.report import units
from nybble.report.progress import console
from nybble.runtime.session import Session


@dataclass(frozen=True)
class Drop:
    """How much accuracy the compiled network may lose.

    Attributes:
        most: points of top-1, in percent, below the float network.
        file: inputs and ``labels``, .npz.
    """

    most: float
    file: Path

    def options(self, model: Model) -> dict[str, Any]:
        """Arguments of `nybble.quantize`.

        Raises:
            NybbleError: the data does not fit the model, or holds no labels.
        """
        given = ready(model, evaluation_of(self.file))
        if given.labels is None:
            raise NybbleError(
                f"{self.file}: no array '{LABELS}'. --max-drop compares top-1: store the right "
                "class of each sample beside the inputs, numpy.savez(file, images=…, labels=…)."
            )
        return {
            "max_drop": self.most,
            "evaluate": lambda session: top1(session, given),
            "on_trial": _show,
        }


def top1(session: Session, given: Ready) -> float:
    """Percent of samples whose largest first output is the label."""
    name = session.manifest.outputs[0].name
    found = []
    for chunk in given.chunks():
        outputs: Any = session(chunk)
        scores = outputs[name] if isinstance(outputs, dict) else outputs
        found.append(np.asarray(scores).argmax(-1))
    assert given.labels is not None
    return 100 * float(np.mean(np.concatenate(found) == given.labels))


def _show(trial: Trial) -> None:
    """A network of the search in one line: what it costs, how it scored, whether it will do."""
    costs = ", ".join(f"{n} {units.cost(n, value)}" for n, value in trial.allocation.costs.items())
    verdict = "accepted" if trial.accepted else "too low"
    console.print(Text(f"tried {costs}: top-1 {trial.score:.2f} %, {verdict}"))
