"""What cannot be measured is said clearly; what can, in spite of odd layers, is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nybble
from nybble import Measure
from nybble.errors import CalibrationError, NybbleError, StageError
from nybble.passes import differentiable
from tests.sensitivity.nets import SIZE, Residual, images, model, names

MEASURES = ("hessian", "perturbation", "pairwise", "hessian_proxy", "influence")


def measured(net: nybble.Model, x: Any, name: str = "perturbation", **options: Any) -> Any:
    return nybble.sensitivity(net, x, Measure(name, remember=False, fewest=4, most=4, **options))


@pytest.mark.parametrize("name", MEASURES)
def test_no_data(name: str) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        measured(model(), [], name)


def test_data_of_another_shape() -> None:
    with pytest.raises(CalibrationError, match="expected shape"):
        measured(model(), np.zeros((2, 3, SIZE, SIZE), np.float32))
    with pytest.raises(CalibrationError, match="NaN"):
        measured(model(), np.full((2, 1, SIZE, SIZE), np.nan, np.float32))


def test_a_calibration_smaller_than_the_models_batch() -> None:
    net = nybble.load_torch(Residual().eval(), (torch.zeros(4, 1, SIZE, SIZE),), False)
    with pytest.raises(CalibrationError, match=r"expected shape \(4, .*got \(3, "):
        measured(net, [images(3)])
    whole = nybble.load_torch(Residual().eval(), (torch.zeros(3, 1, SIZE, SIZE),), False)
    assert measured(whole, [images()]).effort.samples == 6


def test_a_calibration_smaller_than_the_batch_evaluated_together() -> None:
    one = measured(model(), images(), batch=100)
    assert measured(model(), list(images()), batch=100).losses == one.losses
    two = measured(model(), images(), batch=4)  # 4 and 2 samples
    for layer, losses in one.losses.items():
        assert two.losses[layer] == pytest.approx(losses, rel=1e-4, abs=1e-9)


def test_names_that_match_nothing() -> None:
    with pytest.raises(NybbleError, match=r"did you mean .*head"):
        measured(model(), images(), layers=(names()["head"].replace("head", "haed"),))
    with pytest.raises(NybbleError, match="tuple of patterns"):
        Measure(layers="head")  # type: ignore[arg-type]
    some = measured(model(), images(), layers=(names()["mix"],))
    assert list(some.losses) == [names()["mix"]]


def test_what_is_no_measure_or_width() -> None:
    with pytest.raises(NybbleError, match="measure='trace' is not one of: hessian"):
        nybble.sensitivity(model(), images(), "trace")
    for widths in ((), (4, 4)):
        with pytest.raises(NybbleError, match="different widths"):
            nybble.sensitivity(model(), images(), "influence", widths)
    with pytest.raises(NybbleError, match="weights=9"):
        nybble.sensitivity(model(), images(), "influence", (4, 9))
    steps: list[int] = []
    with pytest.raises(NybbleError, match="weights=9"):
        nybble.sensitivity(model(), images(), widths=(4, 9), progress=lambda *s: steps.append(s[0]))
    assert not steps  # before anything is measured
    with pytest.raises(NybbleError, match="takes no loss"):
        Measure("influence", loss=lambda outputs, _: outputs[0].sum())
    with pytest.raises(NybbleError, match="fewest"):
        Measure("hessian", fewest=8, most=4)
    weight_only = nybble.Recipe(weights=4, activations="float")
    with pytest.raises(NybbleError, match="activations='float'"):
        nybble.sensitivity(model(), images(), "influence", recipe=weight_only)


def test_layers_kept_float_are_not_measured() -> None:
    recipe = nybble.Recipe(keep_float=(names()["stem"],))
    found = nybble.sensitivity(model(), images(), "influence", recipe=recipe)
    assert list(found.losses) == [names()[layer] for layer in ("branch", "mix", "head")]


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_constant_layers(name: str, value: float) -> None:
    net = Residual().eval()
    nn.init.constant_(net.branch.weight, value)
    nn.init.constant_(net.mix.weight, value)
    found = measured(nybble.load_torch(net, (torch.zeros(1, 1, SIZE, SIZE),)), images(), name)
    for layer in list(found.losses)[1:3]:  # rounding changes nothing in them but the last bit
        assert found.losses[layer][8] == pytest.approx(0, abs=1e-9)
    assert all(np.isfinite(list(losses.values())).all() for losses in found.losses.values())
    assert all(np.isfinite(pair) for pair in found.pairs.values())


def test_an_op_without_torch_form_is_named_and_influence_still_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(differentiable.OPS, "relax.tanh")
    for name in ("hessian", "perturbation"):
        with pytest.raises(StageError, match=rf"measure='{name}'.*tanh.*relax\.tanh.*influence"):
            measured(model(), images(), name)
    assert len(measured(model(), images(), "influence").losses) == 4


def test_a_loss_without_derivative() -> None:
    def accuracy(outputs: list[Tensor], batch: Any) -> Tensor:
        return (outputs[0].argmax(1) != batch.wanted[0].argmax(1)).double().mean()

    with pytest.raises(StageError, match=r"derivative by the weights of .*stem.*perturbation"):
        measured(model(), images(), "hessian", loss=accuracy)
    assert len(measured(model(), images(), loss=accuracy).losses) == 4


def test_losses_that_are_no_numbers() -> None:
    with pytest.raises(CalibrationError, match="scalar"):
        measured(model(), images(), loss=lambda outputs, _: outputs[0])
    with pytest.raises(CalibrationError, match="scalar"):
        measured(model(), images(), loss=lambda _, __: 1.0)
    with pytest.raises(CalibrationError, match="nan"):
        measured(model(), images(), loss=lambda outputs, _: outputs[0].sum() * float("nan"))


def test_a_loss_of_labels_finds_them_by_the_first_sample() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    seen: list[tuple[int, int]] = []

    def loss(outputs: list[Tensor], batch: Any) -> Tensor:
        seen.append((batch.first, len(outputs[0])))
        mine = labels[batch.first : batch.first + len(outputs[0])]
        return nn.functional.cross_entropy(outputs[0], mine)

    measured(model(), images(), loss=loss, batch=4)
    assert set(seen) == {(0, 4), (4, 2)}


class Regression(nn.Module):
    """A map of pixels, no class scores."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


def test_other_outputs_are_judged_by_squares_relative_to_their_variance() -> None:
    nets = [Regression(1.0), Regression(100.0)]
    nets[1].load_state_dict(nets[0].state_dict())
    example = torch.zeros(1, 1, SIZE, SIZE)
    one, other = (measured(nybble.load_torch(n.eval(), (example,)), images()) for n in nets)
    (small,), (large,) = one.losses.values(), other.losses.values()
    assert 0 < small[4] < 0.1
    assert large == pytest.approx(small, rel=1e-3)


def test_outputs_that_never_change() -> None:
    net = Regression(1.0).eval()
    nn.init.zeros_(net.conv.weight)
    assert net.conv.bias is not None
    nn.init.constant_(net.conv.bias, 0.3)
    with pytest.raises(CalibrationError, match="the same for all calibration samples"):
        measured(nybble.load_torch(net, (torch.zeros(1, 1, SIZE, SIZE),)), images())


def test_probabilities_are_judged_as_what_they_are() -> None:
    net = Residual().eval()
    example = torch.zeros(1, 1, SIZE, SIZE)
    scores = measured(nybble.load_torch(net, (example,)), images())
    softmax = nn.Sequential(net, nn.Softmax(1)).eval()
    probabilities = measured(nybble.load_torch(softmax, (example,)), images())
    for one, other in zip(scores.losses.values(), probabilities.losses.values(), strict=True):
        assert other == pytest.approx(one, rel=1e-2, abs=1e-7)
