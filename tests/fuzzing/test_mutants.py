"""Whatever comes in: only errors of ours come out, quickly, and no file is left behind.

`tests/fuzzing/onnx_mutants.py` and `library_mutants.py` say what is changed, `walks.py` what must
hold. A failure names its mutant, and the command that meets it again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from nybble.runtime import artifact
from tests.fuzzing import seeds
from tests.fuzzing.parent import Hunt
from tests.runtime.tiny import tiny_executable, tiny_manifest

QUICK = {"onnx": 12, "library": 15, "manifest": 15}
SLOW = {"onnx": 900, "nodes": 600, "library": 300, "manifest": 200}
HUNT = 100  # mutants a test, so that several processes share the work


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A library, and one of two variants."""
    path = tmp_path_factory.mktemp("sound") / "net.so"
    first = (tiny_executable(), tiny_manifest())
    second = (tiny_executable(factor=2), tiny_manifest(target="x86-64-v3", features=("avx2",)))
    found = []
    for variants in ([first], [first, second]):
        artifact.export_all(variants, path)
        found.append(path.read_bytes())
    return found


def _seeds(kind: str, libraries: list[bytes]) -> list[bytes]:
    if kind == "nodes":
        return seeds.nodes()
    return seeds.networks() if kind == "onnx" else libraries


def test_a_sample_of_mutants(libraries: list[bytes], tmp_path: Path) -> None:
    with Hunt(tmp_path) as hunt:
        for kind in QUICK:
            hunt.plant(kind, _seeds(kind, libraries))
        for kind, count in QUICK.items():
            hunt.run(kind, range(count))
    assert not hunt.failures, "\n\n".join(hunt.failures)
    assert hunt.ends["imported"]
    assert hunt.ends.total() == sum(QUICK.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "first"), [(kind, first) for kind in SLOW for first in range(0, SLOW[kind], HUNT)]
)
def test_two_thousand_mutants(
    kind: str, first: int, libraries: list[bytes], tmp_path: Path
) -> None:
    with Hunt(tmp_path) as hunt:
        hunt.plant(kind, _seeds(kind, libraries))
        hunt.run(kind, range(first, first + HUNT))
    assert not hunt.failures, "\n\n".join(hunt.failures)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "end", "said"),
    [
        ("dies", "died", "exit code"),
        ("hangs", "hangs", "it hangs"),
        ("leaves", "done", "forgotten"),
        ("escapes", "KeyError", "escaped"),
    ],
)
def test_a_hunt_finds_what_goes_wrong(kind: str, end: str, said: str, tmp_path: Path) -> None:
    with Hunt(tmp_path, patience=30) as hunt:
        hunt.plant(kind, [b""])
        hunt.run(kind, [7])
    assert hunt.ends == {end: 1}
    (failure,) = hunt.failures
    assert said in failure
    assert failure.startswith(f"python -m tests.fuzzing.child {tmp_path}/seeds {kind} 7\n")
