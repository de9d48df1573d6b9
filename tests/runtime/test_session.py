"""Running a deployed library: results, checks of inputs, times, observation."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble.errors import ArtifactError
from nybble.runtime import artifact, engine, host
from nybble.runtime.manifest import Layer
from nybble.runtime.session import Session, load
from tests.runtime.tiny import layer, tiny_executable, tiny_manifest, tiny_pair

X = np.arange(12, dtype=np.float32).reshape(3, 4)
W = np.arange(1, 5, dtype=np.float32)
two_cpus = pytest.mark.skipif(len(host.cpus()) < 2, reason="needs two CPUs")


@pytest.fixture(scope="module")
def session(library: Path) -> Session:
    return load(library)


def exported(executable: Any, tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "net.so"
    artifact.export(executable, tiny_manifest(**changes), path)
    return path


def test_runs_by_position_by_name_and_any_batch(session: Session) -> None:
    np.testing.assert_array_equal(session(X), X * W * W)
    np.testing.assert_array_equal(session({"x": X[:1]}), X[:1] * W * W)


def test_results_stay_valid_after_further_calls_and_the_session(library: Path) -> None:
    session = load(library)
    first, second = session(X), session(X + 1)
    del session
    np.testing.assert_array_equal(first, X * W * W)
    np.testing.assert_array_equal(second, (X + 1) * W * W)


@pytest.mark.parametrize("kind", ["strided", "read_only", "misaligned", "odd", "fortran"])
def test_awkward_memory(session: Session, kind: str) -> None:
    x = X.copy()
    if kind == "strided":
        x = np.repeat(X, 2, axis=1)[:, ::2]
    elif kind == "read_only":
        x.flags.writeable = False
    elif kind in ("misaligned", "odd"):
        offset = 4 if kind == "misaligned" else 3
        x = np.empty(X.nbytes + offset, np.uint8)[offset:].view(np.float32).reshape(X.shape)
        x[:] = X
    else:
        x = np.asfortranarray(X)
    np.testing.assert_array_equal(session(x), X * W * W)


def test_takes_foreign_arrays(session: Session) -> None:
    class ByArray:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return X

    class ByDlpack:
        def __dlpack__(self, **kwargs: Any) -> Any:
            return X.__dlpack__(**kwargs)

        def __dlpack_device__(self) -> Any:
            return X.__dlpack_device__()

    for value in (ByArray(), ByDlpack()):
        np.testing.assert_array_equal(session(value), X * W * W)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((X.astype(np.float64),), r"'x': expected float32\[n, 4\], got float64.*astype"),
        ((X[:, :3],), r"'x': expected shape \(n, 4\), got \(3, 3\)"),
        ((X[0],), r"expected shape \(n, 4\), got \(4,\)"),
        ((X.tolist(),), "got a list"),
        ((None,), "got a NoneType"),
        ((), "0 array.* the network has 1"),
        ((X, X), "2 array.* the network has 1"),
        (({"images": X},), r"Inputs \['images'\] given; the network has 'x'"),
    ],
)
def test_wrong_inputs(session: Session, values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        session(*values)


def test_batch_zero_gives_empty_outputs(session: Session) -> None:
    result = session(X[:0])
    assert isinstance(result, np.ndarray)
    assert (result.shape, str(result.dtype)) == ((0, 4), "float32")
    for work in (session.benchmark, session.profile):
        with pytest.raises(ArtifactError, match="nothing to run"):
            work(X[:0])


def test_empty_input_of_a_network_whose_output_is_not(tmp_path: Path) -> None:
    executable, manifest = tiny_pair()
    artifact.export(executable, manifest, tmp_path / "pair.so")
    session = load(tmp_path / "pair.so")
    a, b = np.ones((2, 4), np.float32), np.ones((0, 2, 2), np.int32)
    with pytest.raises(ArtifactError, match=r"m is 0.*output 'double' float32\[n, 4\] is not"):
        session(a, b)
    both = session(a[:0], b[:, :, :0])
    assert isinstance(both, dict)
    assert [array.shape for array in both.values()] == [(0, 4), (0, 2, 0)]


def test_several_outputs_come_by_name(tmp_path: Path) -> None:
    port = tiny_manifest().outputs[0]
    both = (port, type(port)("half", port.shape, port.dtype))
    path = exported(tiny_executable(outputs=2), tmp_path, outputs=both)
    result = load(path)(X)
    assert isinstance(result, dict)
    np.testing.assert_array_equal(result["y"], X * W * W)
    np.testing.assert_array_equal(result["half"], X * W)


def test_a_file_that_was_replaced_is_loaded_anew(executable: Any, tmp_path: Path) -> None:
    older = load(exported(executable, tmp_path))
    np.testing.assert_array_equal(load(tmp_path / "net.so")(X), older(X))
    port = tiny_manifest().outputs[0]
    both = (port, type(port)("half", port.shape, port.dtype))
    newer = load(exported(tiny_executable(outputs=2), tmp_path, outputs=both))
    result = newer(X)
    assert isinstance(result, dict)
    np.testing.assert_array_equal(result["half"], X * W)
    np.testing.assert_array_equal(older(X), X * W * W)


def test_observe_sees_every_layer_in_order(session: Session) -> None:
    seen: list[tuple[str, Any]] = []

    def keep(where: Layer, output: Any) -> None:
        assert not output.flags.writeable
        seen.append((where["name"], output.copy()))

    session.observe(X, keep)
    assert [name for name, _ in seen] == ["first", "second"]
    np.testing.assert_array_equal(seen[0][1], X * W)
    np.testing.assert_array_equal(seen[1][1], X * W * W)


def test_observers_errors_arrive_unchanged_and_do_no_harm(session: Session) -> None:
    def fail(_layer: Layer, _output: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        session.observe(X, fail)
    np.testing.assert_array_equal(session(X), X * W * W)


def test_profile_and_benchmark(session: Session) -> None:
    times = session.profile(X, repeats=3)
    assert [t.layer["name"] for t in times] == ["first", "second"]
    assert all(0 < t.seconds < 0.1 for t in times)
    measured = session.benchmark({"x": X}, repeats=5)
    assert len(measured.times) == 5
    assert 0 < measured.best <= measured.median <= measured.percentile(100)
    with pytest.raises(ArtifactError, match="repeats=0"):
        session.benchmark(X, repeats=0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([layer("one", "scale")], "after the manifest's last layer"),
        ([layer(n, "scale") for n in "abc"], "never ran the manifest's layer 'c'"),
    ],
)
def test_manifest_that_tells_other_layers(
    executable: Any, tmp_path: Path, layers: list[Layer], message: str
) -> None:
    session = load(exported(executable, tmp_path, layers=tuple(layers)))
    with pytest.raises(ArtifactError, match=message):
        session.profile(X)


def test_missing_features_name_what_to_compile_for(executable: Any, tmp_path: Path) -> None:
    path = exported(executable, tmp_path, target="future", features=("avx1024", "fma9"))
    with pytest.raises(ArtifactError, match=r"'future'; this CPU lacks avx1024, fma9.*'native'"):
        load(path)


def test_other_architecture(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ArtifactError, match=r"Compiled for .*this machine is riscv64"):
        load(library)


def in_a_new_thread(work: Callable[[], None]) -> None:
    """Runs ``work`` where TVM has no pool yet: it keeps one for each thread that calls it."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(timeout=60)


@two_cpus
@pytest.mark.parametrize("threads", [1, 2])
def test_threads(library: Path, threads: int) -> None:
    def work() -> None:
        session = load(library, threads=threads)
        np.testing.assert_array_equal(session(X), X * W * W)
        assert engine.ffi().get_global_func("runtime.NumThreads")() == threads
        assert session.benchmark(X, repeats=1).threads == threads

    in_a_new_thread(work)


@two_cpus
def test_sessions_of_different_thread_counts_take_turns(library: Path) -> None:
    size = engine.ffi().get_global_func("runtime.NumThreads")

    def work() -> None:
        one, two = load(library, threads=1), load(library, threads=2)
        for session in (one, two, one):
            session(X)
            assert size() == session.threads

    in_a_new_thread(work)


@two_cpus
def test_a_pool_that_tvm_started_too_small_is_left_alone(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = engine.ffi().get_global_func("runtime.NumThreads")
    seen: list[int] = []

    def measured(x: Any) -> Any:
        seen.append(size())
        return x

    def work() -> None:
        assert size() == 1  # this starts the pool, as another user of TVM would
        session = load(library, threads=2)
        session._idle[0] = session._idle[0]._replace(run=measured)
        np.testing.assert_array_equal(session(X), X)
        assert size() == 1

    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    in_a_new_thread(work)
    assert seen == [2]


def test_the_caller_is_not_bound_to_one_cpu(library: Path) -> None:
    before = os.sched_getaffinity(0)
    load(library, threads=1)(X)
    assert os.sched_getaffinity(0) >= before


@two_cpus
def test_runs_in_any_python_thread(library: Path) -> None:
    session = load(library, threads=2)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(session, X).result(timeout=60)
    np.testing.assert_array_equal(result, X * W * W)


def test_no_threads_is_an_error(library: Path) -> None:
    with pytest.raises(ArtifactError, match="threads=0"):
        load(library, threads=0)


def test_default_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpus", lambda: list(range(9)))
    monkeypatch.setattr(host, "physical_cores", lambda: 4)
    for said, threads in (("7", 7), ("70", 9), ("0", 4), ("many", 4)):
        monkeypatch.setenv("TVM_NUM_THREADS", said)
        assert engine.default_threads() == threads
    monkeypatch.delenv("TVM_NUM_THREADS")
    assert engine.default_threads() == 4


def test_runtime_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ArtifactError, match="pip install apache-tvm"):
        engine.ffi.__wrapped__()
