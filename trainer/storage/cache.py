"""The cache directory: models that are made once and used again."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/cer_ext, or ~/.cache/cer_ext."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cer_ext"
