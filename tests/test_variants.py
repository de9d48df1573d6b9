"""One file for several CPUs, through the public calls and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nybble
from nybble import commands
from nybble.errors import NybbleError
from nybble.runtime import host
from nybble.runtime.manifest import read_all
from nybble.schedules.target import host_features, resolve_all
from tests import models
from tests.walking import SMALL, tiny

TARGETS = ["x86-64-v4-vnni", "x86-64", "x86-64-v3"]
LOWEST_FIRST = ["x86-64", "x86-64-v3", "x86-64-v4-vnni"]
V3 = frozenset(("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"))

pytestmark = pytest.mark.skipif(host.arch() != "x86_64", reason="compiles for x86-64 and runs it")


pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def network() -> nybble.QuantizedModel:
    return nybble.quantize(tiny(), [models.images(4, (3, SMALL, SMALL), seed=5)])


@pytest.fixture(scope="module")
def fat(network: nybble.QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seen: list[tuple[int, int | None]] = []
    artifact = nybble.compile(network, TARGETS, progress=lambda *step: seen.append(step))
    assert [one.manifest.target for one in (artifact, *artifact.higher)] == LOWEST_FIRST
    total = len(seen)
    assert seen == [(i + 1, total) for i in range(total)]
    return artifact.save(tmp_path_factory.mktemp("fat") / "fat.so")


@pytest.mark.parametrize("name", LOWEST_FIRST)
def test_every_variant_gives_the_law(
    network: nybble.QuantizedModel, fat: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = resolve_all([name])[0].features
    if not needs <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(needs - host_features()))}")
    monkeypatch.setenv(host.VARIANT, name)
    session = nybble.load(fat)
    assert session.manifest.target == name
    x = models.images(3, (3, SMALL, SMALL), seed=9)
    np.testing.assert_array_equal(session(x), network.run(x))


def test_kernels_written_as_c(network: nybble.QuantizedModel, tmp_path: Path) -> None:
    path = nybble.compile(network, ["c", "x86-64-v3"]).save(tmp_path / "net.so")
    session = nybble.load(path)
    x = models.images(3, (3, SMALL, SMALL), seed=9)
    np.testing.assert_array_equal(session(x), network.run(x))
    assert read_all(path)[0].manifest.target == "c"
    plain = nybble.compile(network, "c").save(tmp_path / "plain.so")
    session = nybble.load(plain)
    assert session.manifest.features == ()
    np.testing.assert_array_equal(session(x), network.run(x))


def test_a_lesser_cpu_takes_a_lower_variant(
    network: nybble.QuantizedModel, fat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not host_features() >= V3:
        pytest.skip("this CPU lacks AVX2")
    x = models.images(1, (3, SMALL, SMALL), seed=9)
    for features, taken in ((V3, "x86-64-v3"), (frozenset(("sse2",)), "x86-64")):
        monkeypatch.setattr(host, "features", lambda features=features: features)
        session = nybble.load(fat)
        assert session.manifest.target == taken
        np.testing.assert_array_equal(session(x), network.run(x))


def test_targets_that_cannot_share_a_file() -> None:
    with pytest.raises(NybbleError, match=r"one architecture.*aarch64, x86_64"):
        resolve_all(["x86-64", "aarch64"])
    with pytest.raises(NybbleError, match="its own name"):
        resolve_all(["x86-64", "x86-64"])
    with pytest.raises(NybbleError, match="at least one"):
        resolve_all([])


def test_inspect_shows_all_variants(
    fat: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "features", lambda: frozenset(("sse2",)))
    commands.inspect(fat, as_json=True, timed=True, batch=1)
    told = json.loads(capsys.readouterr().out)
    assert [variant["target"] for variant in told["variants"]] == LOWEST_FIRST
    assert told["target"] == "x86-64"
    assert told["layers"][0]["time"] > 0
    assert told["variants"][1]["features"] == sorted(V3)
    assert sum(variant["size"] for variant in told["variants"]) < fat.stat().st_size
    commands.inspect(fat, as_json=False, timed=False, batch=1)
    shown = capsys.readouterr().out
    assert all(name in shown for name in LOWEST_FIRST)
