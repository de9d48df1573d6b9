"""Evaluations in other processes give what this one finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nybble
from nybble import Measure
from nybble.errors import NybbleError
from tests.sensitivity.nets import images, model


@pytest.mark.slow
def test_pairs_are_the_same_from_two_processes(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    here = nybble.sensitivity(model(), images(), Measure("pairwise", remember=False), (2, 8))
    options = Measure("pairwise", cache=tmp_path)
    there = nybble.sensitivity(
        model(), images(), options, (2, 8), progress=lambda *s: seen.append(s), workers="2"
    )
    assert there.losses.keys() == here.losses.keys()
    for layer, losses in here.losses.items():
        assert there.losses[layer] == pytest.approx(losses, rel=1e-4, abs=1e-9)
    assert there.pairs == pytest.approx(here.pairs, rel=1e-4, abs=1e-9)
    assert seen[-1][0] == seen[-1][1]
    assert there.effort.forward == here.effort.forward
    again = nybble.sensitivity(model(), images(), options, (2, 8))
    assert (again.losses, again.pairs) == (there.losses, there.pairs)  # kept as if made here


def test_a_loss_that_cannot_be_sent_is_refused() -> None:
    def loss(outputs: list[Any], _: Any) -> Any:
        return outputs[0].mean()

    with pytest.raises(NybbleError, match="loss cannot be sent to workers"):
        nybble.sensitivity(model(), images(), Measure(loss=loss), (4,), workers="1")
