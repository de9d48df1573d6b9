"""The loop that all learned corrections share: Adam on random rows of a layer's product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from nybble.passes.correction.layers import Problem, Tick
from nybble.passes.grids import Levels

EVERY = 50  # iterations between two reports
TINY = 1e-12
INPUTS = 1 << 19  # in a batch: rows of depthwise layers hold a window of every channel
FEWEST = 64  # rows in a batch nevertheless


class Form(Protocol):
    """A layer with something to learn."""

    def parameters(self) -> list[dict[str, object]]:
        """Groups for Adam, with their rates."""
        ...

    def weights(self) -> Tensor:
        """(groups, O / groups, K), with gradients."""
        ...

    def bias(self) -> Tensor:
        """(O,)."""
        ...

    def inputs(self, rows: Tensor) -> Tensor:
        """Rows on their grid."""
        ...

    def at(self, progress: float) -> float:
        """Called before each iteration; the share of its rates.

        Args:
            progress: from 0 to 1.
        """
        ...


def fit(
    problem: Problem, form: Form, iterations: int, batch: int, run: tuple[torch.Generator, Tick]
) -> None:
    """Minimises the squared error of a layer's outputs, each channel in parts of its first one.

    So a channel counts by how much of its own error is left, not by how large its outputs are.
    """
    generator, tick = run
    optimizer = torch.optim.Adam(form.parameters(), fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    first = problem.errors(problem.settled())
    share = torch.where(first > TINY, 1 / first.clamp(min=TINY), torch.zeros_like(first)).float()
    batch = min(batch, max(FEWEST, INPUTS // problem.rows[0].numel()))
    for step, chosen in enumerate(_batches(len(problem.rows), batch, iterations, generator)):
        pace = form.at(step / iterations)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = pace * rate
        beside = None if problem.beside is None else problem.beside[chosen]
        x = form.inputs(problem.rows[chosen])
        made = problem.answers(x, form.weights(), form.bias(), beside)
        errors = (made - problem.target[chosen]).square().mean(dim=0)
        loss = (errors * share).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            tick(step, iterations)


def _batches(
    rows: int, batch: int, iterations: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Indices of rows: the whole set shuffled, again and again."""
    left = torch.randperm(rows, generator=generator)
    for _ in range(iterations):
        if len(left) < min(batch, rows):
            left = torch.cat([left, torch.randperm(rows, generator=generator)])
        yield left[: min(batch, rows)]
        left = left[min(batch, rows) :]


class _Straight(torch.autograd.Function):
    """Rounds to nearest, half to even; the gradient passes as if it did nothing."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return torch.round(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient


round_through: Callable[[Tensor], Tensor] = _Straight.apply


def integers_through(steps: Tensor, levels: Levels) -> Tensor:
    """Weights in steps of their scale as integers; gradients pass inside the levels."""
    made: Tensor = _Integers.apply(steps, levels)  # type: ignore[no-untyped-call]
    return made


class _Integers(torch.autograd.Function):
    """One op in place of six: this is where learning spends its time."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, levels: Levels) -> Tensor:
        if gap_of(levels) == 2:
            made = torch.where(steps < 0, -1.0, 1.0).to(steps.dtype)
            inside = steps.abs() <= 1
        else:
            made = torch.round(steps)
            inside = (made >= levels.lo) & (made <= levels.hi)
            made.clamp_(levels.lo, levels.hi)
        ctx.save_for_backward(inside)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


def gap_of(levels: Levels) -> int:
    """From one integer to the next: 1-bit weights have no 0."""
    return 2 if levels.dtype == "int1" else 1
