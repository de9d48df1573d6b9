"""The public calls: inputs, outputs, batches, calibration data, progress."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nybble
from nybble.errors import ArtifactError, CalibrationError
from nybble.report.parity import parity
from tests import models
from tests.walking import (
    SMALL,
    few,
    tiny,
)


class TwoByTwo(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(1, 8, 3, 2, 1)
        self.score, self.map = nn.Linear(8, 4), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.left(image) + self.right(depth))
        return self.score(x.mean((2, 3))), self.map(x)


def test_two_inputs_and_two_outputs(tmp_path: Path) -> None:
    example = (torch.zeros(2, 3, 12, 12), torch.zeros(2, 1, 12, 12))
    model = nybble.load_torch(TwoByTwo().eval(), example)
    arrays = (models.images(6, (3, 12, 12)), models.images(6, (1, 12, 12), seed=2))
    named = dict(zip(("image", "depth"), arrays, strict=True))
    with pytest.raises(CalibrationError, match=r"2 inputs: give .* \['image', 'depth'\]"):
        nybble.quantize(model, [arrays[0]])
    quantized = nybble.quantize(model, [named])
    session: Any = nybble.load(nybble.compile(quantized).save(tmp_path / "net.so"))
    assert [port.name for port in session.manifest.inputs] == ["image", "depth"]
    values: dict[str, Any] = {}
    law = quantized.run(named, values.__setitem__)
    assert isinstance(law, dict)
    assert list(law) == [port.name for port in session.manifest.outputs]
    assert [array.shape for array in law.values()] == [(6, 4), (6, 2, 6, 6)]
    assert parity(values, session, named).equal
    assert session.manifest.float_ops == ()
    for result in (session(*arrays), session(named), quantized.run(list(arrays))):
        assert isinstance(result, dict)
        for name, array in law.items():
            np.testing.assert_array_equal(result[name], array)


@pytest.mark.whole
def test_a_batch_is_its_images_one_by_one(tmp_path: Path) -> None:
    session: Any = nybble.load(
        nybble.compile(quantized_tiny()).save(tmp_path / "net.so"), threads=2
    )
    whole = np.asarray(session(few()))
    for count in (1, 2, 5):
        parts = [session(few()[i : i + count]) for i in range(0, 8, count)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@cache
def quantized_tiny() -> Any:
    return nybble.quantize(tiny(), [few()])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nybble.compile(quantized_tiny()).save(tmp_path_factory.mktemp("tiny") / "net.so")


def test_what_the_calls_return_prints_on_a_line(library: Path) -> None:
    ports = "input: float32[batch, 3, 32, 32] -> output: float32[batch, 10]"
    assert re.fullmatch(rf"Model\({re.escape(ports)}; \d+ ops\)", repr(tiny()))
    assert re.fullmatch(rf"QuantizedModel\({re.escape(ports)}; \d+ ops\)", repr(quantized_tiny()))
    session = nybble.load(library, threads=1)
    manifest = session.manifest
    told = f"Manifest({manifest.target}; {ports}; {len(manifest.layers)} layers)"
    assert repr(manifest) == told
    assert repr(session) == f"Session({told}, threads=1)"
    assert repr(nybble.Artifact(None, manifest)) == f"Artifact({told})"


@pytest.mark.parametrize("value", [-1e9, 1e9, np.nan, 0, np.inf, -np.inf])
def test_extreme_inputs_equal_the_law(value: float, library: Path) -> None:
    session: Any = nybble.load(library)
    x = np.full((2, 3, SMALL, SMALL), value, np.float32)
    x[1, :, ::2] = -value
    law = quantized_tiny().run(x)
    assert np.all(np.isfinite(law))
    np.testing.assert_array_equal(session(x), law)


FORMS: dict[str, Callable[[Any], Iterable[Any]]] = {
    "one_by_one": lambda x: (image[None] for image in x),
    "without_batch_axis": list,
    "one_array": lambda x: x,
    "array_of_batches": lambda x: x[:, None],
    "dicts": lambda x: [{"input": x[:3]}, {"input": x[3:]}],
    "dicts_without_batch_axis": lambda x: [{"input": image} for image in x],
    "tensors": lambda x: [torch.from_numpy(x)],
}


@pytest.mark.parametrize("form", FORMS)
def test_calibration_data_comes_in_many_forms(form: str) -> None:
    quantized: Any = nybble.quantize(tiny(), FORMS[form](few()))
    np.testing.assert_array_equal(quantized.run(few()), quantized_tiny().run(few()))


@pytest.mark.parametrize(("form", "total"), [("one_by_one", None), ("without_batch_axis", 8)])
def test_progress_counts_samples(form: str, total: int | None) -> None:
    seen: list[tuple[int, int | None]] = []
    nybble.quantize(tiny(), FORMS[form](few()), progress=lambda *step: seen.append(step))
    assert seen == [(done, total) for done in range(1, 9)]


@pytest.mark.whole
def test_a_fixed_batch_is_calibrated_with_any_multiple_of_it(tmp_path: Path) -> None:
    net, law = models.tiny_cnn(SMALL), quantized_tiny()
    for size, data in ((1, [few()]), (1, list(few())), (4, [few()])):
        example = torch.zeros(size, 3, SMALL, SMALL)
        model = nybble.load_onnx(models.export_onnx(net, example, dynamic_batch=False))
        quantized = nybble.quantize(model, data)
        session: Any = nybble.load(nybble.compile(quantized).save(tmp_path / "net.so"))
        x = few()[:size]
        np.testing.assert_array_equal(session(x), law.run(x))
        with pytest.raises(ArtifactError, match=rf"expected shape \({size}, 3, 32, 32\)"):
            session(few()[:3])
    with pytest.raises(CalibrationError, match=r"expected shape \(4, 3, 32, 32\), got \(6, 3"):
        nybble.quantize(model, [few()[:6]])


def test_the_law_takes_what_numpy_takes() -> None:
    for given in (torch.from_numpy(few()), [few()], {"input": few()}):
        got: Any = quantized_tiny().run(given)
        np.testing.assert_array_equal(got, quantized_tiny().run(few()))


@pytest.mark.whole
def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    quantized = (quantized_tiny(), nybble.quantize(tiny(), [few()]))
    paths = [nybble.compile(q).save(tmp_path / f"{i}.so") for i, q in enumerate(quantized)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
