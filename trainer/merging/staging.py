"""A directory that is either whole or not there.

In: where it shall be. Out: a hidden directory beside it to write into, renamed to its place when all has gone well and
removed when anything has not (an exception, Ctrl-C, SIGTERM). Only kill -9 or a power cut can leave the hidden one,
which nothing takes for the result.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_free(output: Path) -> None:
    """Raise FileExistsError unless `output` is absent or an empty directory."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file, not a directory")
    if output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"{output} exists and is not empty; give another --output, or remove it")


@contextmanager
def staged_directory(output: Path) -> Iterator[Path]:
    """Yield a new directory beside `output` that becomes `output` at the end of the block."""
    output = Path(os.path.abspath(output))
    require_free(output)
    made = _make_parents(output.parent)
    staging = output.parent / f".{output.name}.unfinished-{os.getpid()}"
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        staging.mkdir()
        yield staging
        for path in staging.rglob("*"):
            _flush(path)
        require_free(output)  # someone else may have been faster
        os.rename(staging, output)
        _flush(output.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for directory in made:
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame) -> None:
    raise KeyboardInterrupt(f"signal {number}")


def _make_parents(directory: Path) -> list[Path]:
    """Make the directory; return what had to be made, innermost first."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
