"""How far the network's outputs are from those of its float form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nybble.errors import CalibrationError, StageError
from nybble.ir import graph
from nybble.passes.correction.spool import Spool
from nybble.passes.differentiable import Differentiable
from nybble.passes.sensitivity.options import Batch
from nybble.passes.sensitivity.samples import count
from nybble.passes.sensitivity.task import Task
from nybble.passes.view import View

SMALLEST = 1e-30  # of a probability: its logarithm stays finite
ROUNDING = 1e-12  # a variance below this share of the mean square is none


@dataclass(frozen=True)
class Term:
    """The part of one output in the default loss, a mean over samples.

    Attributes:
        distance: of the outputs (N, …) from those wanted; zero where they agree.
        root: of the distance's second derivative by the outputs, where they agree: with S_n·S_nᵀ
            that of sample n, S·e from the wanted outputs and e, both (N, …).
    """

    distance: Callable[[Tensor, Tensor], Tensor]
    root: Callable[[Tensor, Tensor], Tensor]


class Judge:
    """Evaluates the loss on every batch; knows the float network's outputs.

    Args:
        task: whose network and samples.
        wanted: an empty spool, for the float outputs.

    Attributes:
        net: the float network; its parameters take no gradients.
        terms: of the default loss, one for each output; empty with another loss.

    Raises:
        StageError: an op has no torch form.
        CalibrationError: an output never changes, so errors have no measure.
    """

    def __init__(self, task: Task, wanted: Spool):
        try:
            self.net = Differentiable(task.module).requires_grad_(False)
        except StageError as error:
            raise StageError(
                f"measure='{task.measure.name}' runs the network in torch. {error} The measure "
                "'influence' runs every op."
            ) from error
        self._task, self._wanted = task, wanted
        variances, own = self._reference(), task.measure.loss
        self.terms: list[Term] = []
        if own is None:
            each = zip(self.net.outputs, variances, strict=True)
            self.terms = [term_of(task.view, name, variance) for name, variance in each]
        self._loss = own or self._divergence

    def batches(self) -> Iterator[Batch]:
        """The samples with the float outputs, in order."""
        first = 0
        outputs = self._wanted.batches(len(self._task.samples))
        for inputs, wanted in zip(self._task.samples, outputs, strict=True):
            yield Batch(inputs, list(wanted.values()), first)
            first += count(inputs)

    def loss(self, outputs: list[Tensor], batch: Batch) -> Tensor:
        """The loss of a batch, a scalar.

        Raises:
            CalibrationError: it is no scalar, or not finite.
        """
        loss: Any = self._loss(outputs, batch)
        if not isinstance(loss, Tensor) or loss.dim() > 0:
            raise CalibrationError(
                f"The loss gave {type(loss).__name__} where a scalar tensor is expected: the mean "
                "over the batch."
            )
        if not bool(torch.isfinite(loss)):
            raise CalibrationError(
                f"The loss is {float(loss)} on the batch from sample {batch.first} on. Check the "
                "calibration data, and the loss if it is your own."
            )
        return loss

    def _divergence(self, outputs: list[Tensor], batch: Batch) -> Tensor:
        """The default loss: zero at the float network, a sum over its outputs."""
        each = zip(self.terms, outputs, batch.wanted, strict=True)
        return torch.stack([t.distance(y.double(), w.double()) for t, y, w in each]).sum()

    def _reference(self) -> list[float]:
        """Keeps the float outputs; returns the variance of each."""
        moments: list[Tensor] = []
        with torch.no_grad():
            for inputs in self._task.samples:
                outputs = [y.double() for y in self.net(inputs)]
                self._wanted.add({str(i): y.float().numpy() for i, y in enumerate(outputs)})
                each = [(y.sum(), y.square().sum(), torch.tensor(y.numel())) for y in outputs]
                moments.append(torch.tensor(each, dtype=torch.float64))
        self._task.units.passed(forward=1)
        total, squares, size = torch.stack(moments).sum(0).unbind(1)
        square, variance = squares / size, squares / size - (total / size) ** 2
        variances: list[float] = torch.where(variance > ROUNDING * square, variance, 0.0).tolist()
        return variances


def term_of(view: View, name: str, variance: float) -> Term:
    """KL of the softmax for (N, classes), else the squared error relative to the variance."""
    shape = view.shape(name)
    if len(shape) == 2 and shape[1] != 1:
        return PROBABILITIES if _is_softmax(view, name) else SCORES
    if variance <= 0:
        raise CalibrationError(
            f"The output '{name}' is the same for all calibration samples, so nothing can be told "
            "from it. Give more and different samples, or a loss of your own."
        )
    return Term(
        lambda y, wanted: (y - wanted).square().mean() / variance,
        lambda wanted, e: e * (2 / (variance * wanted[0].numel())) ** 0.5,
    )


def _is_softmax(view: View, name: str) -> bool:
    axis = graph.attributes(view.calls[name]).get("axis") if view.op(name) else None
    return view.op(name) == "relax.nn.softmax" and axis in (1, -1)


def _kl_of_scores(y: Tensor, wanted: Tensor) -> Tensor:
    mine, right = torch.log_softmax(y, 1), torch.log_softmax(wanted, 1)
    return (right.exp() * (right - mine)).sum(1).mean()


def _kl_of_probabilities(y: Tensor, wanted: Tensor) -> Tensor:
    mine, right = y.clamp_min(SMALLEST).log(), wanted.clamp_min(SMALLEST).log()
    return (wanted * (right - mine)).sum(1).mean()


def _root_of_scores(wanted: Tensor, e: Tensor) -> Tensor:
    """(I - p·1ᵀ)·diag(√p)·e: the root of diag(p) - p·pᵀ."""
    p = torch.softmax(wanted, 1)
    spread = p.sqrt() * e
    return spread - p * spread.sum(1, keepdim=True)


def _root_of_probabilities(wanted: Tensor, e: Tensor) -> Tensor:
    return e / wanted.clamp_min(SMALLEST).sqrt()


SCORES = Term(_kl_of_scores, _root_of_scores)
PROBABILITIES = Term(_kl_of_probabilities, _root_of_probabilities)
