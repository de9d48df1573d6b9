from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nybble.runtime import artifact
from tests.runtime.tiny import tiny_executable, tiny_manifest


@pytest.fixture(scope="session")
def executable() -> Any:
    return tiny_executable()


@pytest.fixture(scope="session")
def library(executable: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "tiny.so"
    artifact.export(executable, tiny_manifest(), path)
    return path
