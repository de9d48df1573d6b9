"""What the tests of learned corrections share: a small network, settled and calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import tvm

import nybble
from nybble.passes import pipeline
from nybble.passes.biases import give_biases
from nybble.passes.calibrate import calibrate
from nybble.passes.correction.run import correct
from nybble.passes.correction.spool import Spool
from nybble.passes.settle import Settled, settle
from nybble.recipe import Recipe
from tests.walking import few, tiny

Report = Callable[[int, int], None]


def canonical(model: nybble.Model) -> tvm.IRModule:
    steps = [(give_biases.name, give_biases)]
    return pipeline.run(pipeline.canonicalize(model.module), steps, "float", "float")


@cache
def module() -> tvm.IRModule:
    return canonical(tiny())


@cache
def settled(recipe: Recipe) -> Settled:
    """The small network, rounded to nearest."""
    return settled_from(module(), few(), recipe)


def settled_from(mod: tvm.IRModule, images: Any, recipe: Recipe) -> Settled:
    name = str(mod["main"].params[0].name)
    return settle(mod, calibrate(mod, [{name: images}], recipe), recipe)


@contextmanager
def spooled(mod: tvm.IRModule, images: Any, limit: int = 1 << 30) -> Iterator[Spool]:
    with Spool(limit) as samples:
        samples.add({str(mod["main"].params[0].name): images})
        yield samples


def corrected(recipe: Recipe, report: Report | None = None) -> Settled:
    """The small network behind the recipe's stages."""
    with spooled(module(), few()) as samples:
        return correct(settled(recipe), samples, recipe, report or (lambda _, __: None))


def equal(a: Settled, b: Settled) -> bool:
    """Whether two have the same bits."""
    same = a.grids == b.grids and a.weights.keys() == b.weights.keys()
    return same and all(
        np.array_equal(r.integers, b.weights[n].integers)
        and np.array_equal(r.scale, b.weights[n].scale)
        for n, r in a.weights.items()
    )
