"""Files and directories that are either whole or not there.

In: a path and its content. Out: the content is written under a hidden name beside the path, flushed to the disk, and
renamed. An exception, Ctrl-C or SIGTERM leaves nothing behind; kill -9 or a power cut can leave the hidden file, which
is never taken for the result.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str, *, replace: bool = True) -> None:
    """Write a file that is whole or, as before, absent (or the old one).

    Raises:
        FileExistsError: it exists and `replace` is false; another process that makes it at the same time is noticed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            if replace:
                os.replace(file.name, path)
            else:
                os.link(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)
    _flush(path.parent)


def write_json(path: str | Path, content: Any, *, replace: bool = True) -> None:
    """`write_text` of one JSON value. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", replace=replace)


def require_free(output: Path) -> None:
    """Raise FileExistsError unless `output` is absent or an empty directory."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file, not a directory")
    if output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"{output} exists and is not empty; give another --output, or remove it")


@contextmanager
def staged_directory(output: str | Path) -> Iterator[Path]:
    """Yield a new directory beside `output` that becomes `output` at the end of the block.

    Raises:
        FileExistsError: `output` is there and not empty, before the block or, made by someone else, after it.
    """
    output = Path(os.path.abspath(output))
    require_free(output)
    made = _make_parents(output.parent)
    staging = output.parent / f".{output.name}.unfinished-{os.getpid()}"
    try:
        with _interrupted_by_sigterm():
            staging.mkdir()
            yield staging
            reach_disk(staging)
            require_free(output)  # someone else may have been faster
            os.rename(staging, output)
            _flush(output.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for directory in made:
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
        raise


def publish(staged: Path, final: Path, *, replaced: Path) -> None:
    """Put the directory `staged`, flushed, in the place of `final`; an older one is `replaced` until that is done."""
    reach_disk(staged)
    if final.exists():
        final.rename(replaced)
    staged.rename(final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def reach_disk(directory: Path) -> None:
    """Return when everything in the directory is on the disk."""
    for path in [*directory.rglob("*"), directory]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the block as Ctrl-C does (only a main thread can ask for that)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
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
