"""Where measurements are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "NYBBLE_CACHE"


def folder() -> Path:
    """NYBBLE_CACHE, else ``nybble`` in the user's cache directory; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE) or Path(home) / "nybble")
