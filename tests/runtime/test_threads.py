"""Networks with several inputs, outputs and open extents, called from threads and processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import nybble
from nybble.errors import ArtifactError
from nybble.runtime import artifact, engine, host
from nybble.runtime.session import Session, load
from tests.runtime.tiny import tiny_executable, tiny_manifest

SHAPES = ((1, 5, 7), (3, 8, 8), (2, 9, 4), (4, 12, 16), (1, 16, 16), (5, 6, 6))
two_cpus = pytest.mark.skipif(len(host.cpus()) < 2, reason="needs two CPUs")


def two_ended() -> nybble.Model:
    """``sum``: a convolution of a, and b; ``half``: a convolution of that with stride 2."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3), dtype=np.float32) * 0.2,
        "v": rng.standard_normal((16, 8, 3, 3), dtype=np.float32) * 0.1,
    }
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["c"], name="first", pads=[1] * 4),
        helper.make_node("Add", ["c", "b"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["sum"], name="relu"),
        helper.make_node(
            "Conv", ["sum", "v"], ["half"], name="second", pads=[1] * 4, strides=[2, 2]
        ),
    ]
    info, kind = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "two_ended",
        [info("a", kind, ["n", 3, "h", "w"]), info("b", kind, ["n", 8, "h", "w"])],
        [info("sum", kind, None), info("half", kind, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return nybble.load_onnx(made, {"a": (None, 3, "h", "w"), "b": (None, 8, "h", "w")})


def inputs(n: int, h: int, w: int) -> dict[str, Any]:
    rng = np.random.default_rng(100 * n + 10 * h + w)
    return {
        "a": rng.standard_normal((n, 3, h, w), dtype=np.float32),
        "b": rng.standard_normal((n, 8, h, w), dtype=np.float32),
    }


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Any]]:
    """The library, and by shape what the law says."""
    quantized = nybble.quantize(two_ended(), [inputs(*shape) for shape in SHAPES[:2]])
    path = tmp_path_factory.mktemp("threads") / "net.so"
    nybble.compile(quantized, "x86-64", parameters="outside").save(path)
    return path, {shape: quantized.run(inputs(*shape)) for shape in SHAPES}


def assert_same(session: Session, shape: tuple[int, int, int], law: Any) -> None:
    results = session(inputs(*shape))
    assert isinstance(results, dict)
    assert results.keys() == law.keys()
    for name, array in results.items():
        np.testing.assert_array_equal(array, law[name], err_msg=f"{name} {shape}")


def test_batch_zero_and_one(net: tuple[Path, dict[Any, Any]]) -> None:
    path, law = net
    session = load(path)
    for shape in SHAPES:
        assert_same(session, shape, law[shape])
    empty = session(inputs(0, 8, 8))
    assert isinstance(empty, dict)
    assert (empty["sum"].shape, empty["half"].shape) == ((0, 8, 8, 8), (0, 16, 4, 4))
    with pytest.raises(ArtifactError, match=r"h is 0.*output 'half' .*not sure to be"):
        session(inputs(1, 0, 8))
    assert [str(port) for port in session.manifest.outputs] == [
        "float32[batch, 8, h, w]",
        "float32[batch, 16, (h - 1) // 2 + 1, (w - 1) // 2 + 1]",
    ]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_mix(net: tuple[Path, dict[Any, Any]], shared: bool, threads: int) -> None:
    """Four callers at a time; each compares every result with the law's for its shapes."""
    path, law = net
    count = min(threads, len(host.cpus()))
    one = load(path, threads=count)

    def work(offset: int) -> None:
        session = one if shared else load(path, threads=count)
        for i in range(30):
            shape = SHAPES[(i + offset) % len(SHAPES)]
            assert_same(session, shape, law[shape])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(one._idle) <= 5  # machines: as many as ever ran at a time


def in_process(path: Path, shape: tuple[int, int, int], law: Any) -> bool:
    assert_same(load(path), shape, law)
    return True


@pytest.mark.slow
def test_processes(net: tuple[Path, dict[Any, Any]]) -> None:
    path, law = net
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        jobs = [pool.submit(in_process, path, shape, law[shape]) for shape in SHAPES[:2]]
        assert all(job.result(timeout=120) for job in jobs)


def launch() -> list[int]:
    """Tasks that TVM's pool of the calling thread has run, as a parallel kernel starts them."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    seen: list[int] = []

    def run(number: int, _group: Any, _data: Any) -> int:
        seen.append(number)
        return 0

    assert ctypes.CDLL(None).TVMBackendParallelLaunch(kind(run), None, 0) == 0
    return sorted(seen)


@two_cpus
def test_a_fork_of_a_process_that_ran_on_several_threads() -> None:
    """The child has none of TVM's workers; it must not wait for them."""
    engine.ffi()
    assert engine.run(2, launch) == [0, 1]
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits
        os._exit(0 if engine.run(2, launch) == [0, 1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_ever_other_shapes_do_not_fill_the_memory(tmp_path: Path) -> None:
    """What the allocator keeps for shapes that came once is given back."""
    path = tmp_path / "net.so"
    artifact.export(tiny_executable(), tiny_manifest(), path)
    session, most = load(path, threads=1), 200_000
    session(np.ones((most, 4), np.float32))
    before = resident()
    for n in range(most, most // 2, -1000):
        session(np.ones((n, 4), np.float32))
    grown = (resident() - before) / (16 * most)  # in outputs of the largest shape
    assert grown < 30, grown  # 100 different ones came, each with an intermediate tensor


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_ten_thousand_runs_do_not_grow(net: tuple[Path, dict[Any, Any]], shared: bool) -> None:
    """Two threads, all shapes in turn; what is held after 1,000 runs is held after 10,000."""
    path, law = net
    one = load(path, threads=1)

    def work(runs: int) -> None:
        session = one if shared else load(path, threads=1)
        for i in range(runs):
            shape = SHAPES[i % len(SHAPES)]
            if i % 100 == 0:
                assert_same(session, shape, law[shape])
            else:
                session(arrays[shape])

    arrays = {shape: inputs(*shape) for shape in SHAPES}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [500, 500]))
        before = resident()
        list(pool.map(work, [4500, 4500]))
    grown = resident() - before
    assert grown < 1_000_000, f"{grown} bytes in 9,000 runs"
