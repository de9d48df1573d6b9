"""What every test may ask for: data that is not in the repository, features of this CPU."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings

import nybble.ir as _ir  # before anything imports torch: TVM then comes without it
from nybble import known
from nybble.runtime import gpu
from nybble.schedules.records import Records
from nybble.schedules.target import host_features

ROOT = Path(__file__).resolve().parent.parent
FASHION = "/usr/share/datasets/fashion-mnist"

assert _ir.tvm  # the import above is for its order

# A busy machine may stop a test for as long as it likes.
settings.register_profile("nybble", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nybble")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--thin N`` and ``--thin-sweeps N`` leave rows of parametrized tests out."""
    parser.addoption("--thin", type=int, default=1, metavar="N", help="run every Nth row")
    parser.addoption(
        "--thin-sweeps", type=int, default=1, metavar="N", help="run an Nth of the sweeps' rows"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what the options leave out; every test function keeps its first row."""
    seen: Counter[str] = Counter()
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    thin, sweeps = config.getoption("--thin"), config.getoption("--thin-sweeps")
    for item in items:
        function = item.nodeid.split("[")[0]
        is_thinned = seen[function] % thin
        if item.get_closest_marker("sweep") and seen[function]:
            # By a hash: a stride would meet the same instruction set or width again and again.
            is_thinned = is_thinned or crc32(item.nodeid.encode()) % sweeps
        (left_out if is_thinned else kept).append(item)
        seen[function] += 1
    items[:] = kept
    if left_out:
        config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked ``isa(feature, …)`` or ``cuda`` where the machine lacks what they need."""
    for mark in item.iter_markers("isa"):
        missing = [name for name in mark.args if name not in host_features()]
        if missing:
            pytest.skip(f"this CPU has no {', '.join(missing)}")
    if item.get_closest_marker("cuda") and isinstance(why := gpu.find(), str):
        pytest.skip(f"needs an NVIDIA GPU: {why}")


@pytest.fixture(scope="session", autouse=True)
def _nothing_shipped() -> Iterator[None]:
    """Kernels' defaults, not what ships for the machine that the tests happen to run on."""
    none = Records()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "shipped", lambda: none)
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of ``NYBBLE_DATA``; the test is skipped when it is not set."""
    folder = os.environ.get("NYBBLE_DATA")
    if not folder:
        pytest.skip("NYBBLE_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def fashion() -> Path:
    """Fashion-MNIST's folder: ``NYBBLE_FASHION``, or where Debian's package puts it."""
    folder = Path(os.environ.get("NYBBLE_FASHION", FASHION))
    if not (folder / "t10k-images-idx3-ubyte.gz").exists():
        pytest.skip(f"no Fashion-MNIST in {folder}; set NYBBLE_FASHION")
    return folder


@pytest.fixture(scope="session")
def example() -> Path:
    """The folder of the embedded example."""
    return ROOT / "examples" / "fashion_mnist"
