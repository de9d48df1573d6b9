"""Regions of ops on whole rows: what `nybble.passes.regions` does not know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.passes import rows
from nybble.passes.fold_batch_norm import affine
from nybble.passes.grids import Grid
from nybble.passes.regions import Leaf, Matcher, Products, Region


@dataclass(frozen=True)
class MaskedRegion(Region):
    """A softmax.

    Attributes:
        mask: (M, K) or (1, K), 0 where a value is hidden; None without a mask.
    """

    mask: NDArray[np.uint8] | None = None


class RowMatcher(Matcher):
    """Matches products of two tensors, softmax, norms and embeddings too."""

    def _computation(self, name: str, out: Grid) -> Region | None:
        call, op = self.view.calls.get(name), self.view.op(name)
        if op in rows.NORMS and rows.refuse_norm(call) is None:
            leaf = self.leaf(self.view.sources(name)[0])
            return None if leaf is None else Region(name, call, (leaf,))
        if op == rows.SOFTMAX and rows.refuse_softmax(call) is None:
            return self._softmax(name, call)
        if rows.is_lookup(self.view, name):
            return Region(name, call, ())
        products = self.products(name)
        if products is not None:
            return Region(name, call, (products,))
        found = super()._computation(name, out)
        return self._with_constant(name, call) if found is None else found

    def _with_constant(self, name: str, call: Any) -> Region | None:
        """A sum or product with a constant."""
        if call is None or (rows.shift_of(call) is None and rows.factors_of(call) is None):
            return None
        leaf = self.leaf(self.view.sources(name)[0])
        return None if leaf is None else Region(name, call, (leaf,))

    def _softmax(self, name: str, call: Any) -> Region | None:
        source = self.view.sources(name)[0]
        mask = rows.mask_of(self.view, source)
        if mask is not None:
            (source,) = self.view.sources(source)
        operand: Products | Leaf | None = self.products(source) or self.leaf(source)
        return None if operand is None else MaskedRegion(name, call, (operand,), mask=mask)

    def products(self, name: str) -> Products | None:
        """The product of two integer tensors behind ``name``, maybe times a positive number."""
        call, sources = self.view.calls.get(name), self.view.sources(name)
        if self.view.op(name) == "relax.matmul" and len(sources) == 2:
            a, b = (self.leaf(source) for source in sources)
            if a is None or b is None or rows.refuse_matmul(call):
                return None
            return Products(name, a, b)
        step = affine(call) if call is not None and len(sources) == 1 else None
        if step is None or np.any(step[1]) or np.ptp(step[0]) or step[0][0] <= 0:
            return None
        found = self.products(sources[0])
        return replace(found, factor=found.factor * float(step[0][0])) if found else None
