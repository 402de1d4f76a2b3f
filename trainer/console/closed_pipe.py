"""A program whose reader went away (`... | head`, a `tee` that died) goes on with its work, without its words.

In: sys.stdout and sys.stderr. Out: the same, but once a write meets a closed pipe, what follows goes nowhere. Python's
own answer is a BrokenPipeError out of any print, and another at exit: a table ends in a traceback, a training stops.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


def outlive_readers() -> None:
    """For the first line of a program, before anything keeps the streams."""
    sys.stdout, sys.stderr = _OutlivesReader(sys.stdout), _OutlivesReader(sys.stderr)  # type: ignore[assignment]


class _OutlivesReader:
    """A text stream in every other respect."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """What is buffered, and what Python flushes at exit, must find a place as well."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
