"""Which GPU runs what, how a file's variants are chosen, and tensors to a device and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nybble.errors import ArtifactError
from nybble.runtime import engine, gpu, host
from nybble.runtime.manifest import Device, Manifest
from tests.runtime.tiny import tiny_manifest


def device(*archs: str, portable: int | None = None) -> Device:
    return Device(
        kind="cuda", archs=list(archs), portable=portable, toolkit="13.0.88", graphed=False,
        usage=[],
    )  # fmt: skip


def variant(*archs: str, portable: int | None = None) -> Manifest:
    return tiny_manifest(target=f"cuda:{'+'.join(archs)}", device=device(*archs, portable=portable))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a GPU of some capability into this machine, or the reason why there is none."""

    def put(found: int | str) -> None:
        made = found if isinstance(found, str) else gpu.Gpu("A GPU", found)
        monkeypatch.setattr(gpu, "find", lambda: made)

    return put


@pytest.mark.parametrize(
    ("built", "runs_on", "fails_on"),
    [
        (device("sm_80"), (80, 86, 89), (75, 90, 120)),
        (device("sm_86", "sm_89"), (86, 89), (75, 80, 90)),
        (device("sm_80", portable=80), (80, 89, 90, 120), (75,)),
        (device("sm_90a"), (90,), (89, 100)),
        (device("sm_75", portable=75), (75, 80, 90), (70,)),
    ],
)
def test_what_runs_where(
    built: Device, runs_on: tuple[int, ...], fails_on: tuple[int, ...]
) -> None:
    assert [gpu.fits(built, capability) for capability in runs_on] == [True] * len(runs_on)
    assert [gpu.fits(built, capability) for capability in fails_on] == [False] * len(fails_on)


def test_the_last_variant_that_the_gpu_runs_is_taken(on: Any) -> None:
    every = [
        tiny_manifest(),
        variant("sm_75", portable=75),
        variant("sm_80", "sm_89", portable=89),
        variant("sm_90a"),
    ]
    for capability, position in ((75, 1), (80, 2), (86, 2), (90, 3), (120, 2), (70, 0)):
        on(capability)
        assert host.choose(every) == position
    on("there is no NVIDIA driver")
    assert host.choose(every) == 0


def test_refusals_say_what_is_missing_and_what_to_compile_for(
    on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("there is no NVIDIA driver (libcuda.so.1: not found)")
    with pytest.raises(ArtifactError, match=r"GPUs, target 'cuda:sm_80', but there is no NVIDIA"):
        host.check(variant("sm_80"))
    on(75)
    with pytest.raises(ArtifactError, match=r"'A GPU' is sm_75\. Compile .*target='cuda:sm_75'"):
        host.check(variant("sm_80"))
    monkeypatch.setenv(host.VARIANT, "cuda:sm_90a")
    with pytest.raises(ArtifactError, match=r"target 'cuda:sm_90a', but its GPU"):
        host.choose([tiny_manifest(), variant("sm_90a")])


def test_here() -> None:
    found = gpu.find()
    if isinstance(found, gpu.Gpu):
        assert found.capability >= 50
    else:
        assert "driver" in found


def test_memory_copies_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", (1, 0))  # the CPU as the device
    memory = gpu.Memory(engine.ffi())
    first: list[Any] = [np.arange(6, dtype=np.int8).reshape(2, 3), np.ones(4, np.float32)]
    tensors = memory.take(first)
    for array, tensor in zip(first, tensors, strict=True):
        got = memory.give(tensor)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    again = memory.take([array + 1 for array in first])
    assert all(a.same_as(b) for a, b in zip(again, tensors, strict=True))  # the same memory
    np.testing.assert_array_equal(memory.give(again[0]), first[0] + 1)
    (other,) = memory.take([np.zeros(3, np.uint8)])
    assert tuple(other.shape) == (3,)
