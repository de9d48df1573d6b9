"""BAQ's proxy: the error of each layer's own outputs, column by column of its weights."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from nybble.passes.correction.rows import Product, choose, product_of
from nybble.passes.sensitivity.losses import Judge
from nybble.passes.sensitivity.samples import count
from nybble.passes.sensitivity.task import Losses, Task
from nybble.recipe import TERNARY
from nybble.sensitivity_table import Effort, Width

UNIFORM = 4  # bits of the one rounding that all widths are derived from
DAMPING = 0.01  # of the mean diagonal, as in GPTQ
ROWS = 1 << 14  # of a layer's product, from all samples together


def hessian_proxy_effort(samples: int) -> Effort:
    """What `hessian_proxy` takes."""
    return Effort(samples, forward=2)


def hessian_proxy(task: Task, judge: Judge) -> Losses:
    """Σ_i c_i·4^(-R) for R bits; c_i is the loss of column i of a layer's weights at 0 bits.

    One rounding to 4 bits gives c_i·4^(-4) = ‖w_i - q_i‖² / [H⁻¹]_ii with H = 2·XXᵀ + λI of the
    layer's inputs X, a mean over samples, and λ a hundredth of its mean diagonal. Ternary counts as
    log₂ 3 bits. Losses are squared errors of each layer's own outputs: nothing is known of what the
    layers behind make of them.

    Source: BAQ, arXiv 2506.05664; the loss of a column is GPTQ's, arXiv 2210.17323, eq. 2.
    """
    found = task.units.do("columns", len(task.samples), partial(_at_uniform, task, judge))
    return {
        layer: {width: found[layer] * 4.0 ** (UNIFORM - bits(width)) for width in task.widths}
        for layer in task.layers
    }


def bits(width: Width) -> float:
    """The information in a weight."""
    return math.log2(3) if width == TERNARY else float(width)


def _at_uniform(task: Task, judge: Judge) -> dict[str, float]:
    grams = _grams(task, judge)
    products = {layer: product_of(task.view, layer) for layer in task.layers}
    return {layer: _loss(task, layer, products[layer], grams.pop(layer)) for layer in task.layers}


def _loss(task: Task, layer: str, product: Product, gram: Tensor) -> float:
    """Of one layer; ``gram`` is XXᵀ of each group, (groups, depth, depth)."""
    error = torch.from_numpy(task.error(layer, UNIFORM)).reshape(product.groups, -1, product.depth)
    columns = error.square().sum(dim=1)
    hessian = 2 * gram.double()
    means = hessian.diagonal(dim1=1, dim2=2).mean(dim=1)
    met = means > 0  # a group whose inputs are always 0 loses nothing
    identity = torch.eye(product.depth, dtype=torch.float64)
    damped = hessian[met] + DAMPING * means[met].reshape(-1, 1, 1) * identity
    inverse = torch.linalg.inv(damped).diagonal(dim1=1, dim2=2)
    return float((columns[met] / inverse).sum())


def _grams(task: Task, judge: Judge) -> dict[str, Tensor]:
    """The sum of xxᵀ over the inputs x of each layer, a mean over samples.

    Of large images a random part of the pixels stands for all.
    """
    readers: dict[str, list[str]] = {}
    for layer in task.layers:
        readers.setdefault(task.view.sources(layer)[0], []).append(layer)
    products = {layer: product_of(task.view, layer) for layer in task.layers}
    grams: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(task.seed)
    samples, done = len(task.samples), 0

    def observe(name: str, x: Tensor) -> None:
        for layer in readers.get(name, ()):
            product = products[layer]
            chosen = choose(len(x), product.pixels, -(-ROWS * len(x) // samples), generator)
            rows = product.rows(x, chosen).transpose(0, 1)
            share = chosen.shape[1] / product.pixels * samples
            gram = rows.transpose(1, 2) @ rows / share
            grams[layer] = gram if layer not in grams else grams[layer].add_(gram)

    with torch.no_grad():
        for batch in judge.batches():
            judge.net(batch.inputs, observe)
            done += count(batch.inputs)
            task.units.within(done)
    task.units.passed(forward=1)
    return grams
