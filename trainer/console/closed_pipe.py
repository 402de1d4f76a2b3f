"""A program whose reader is gone (`... | head`, a `tee` that died) goes on working; its output is dropped.

In: sys.stdout and sys.stderr. Out: the same streams, but after the first write to a closed pipe all output is dropped.
Python itself raises BrokenPipeError from any print, and again at exit: a table ends in a traceback, training stops.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


def outlive_readers() -> None:
    """Call this first in a program, before anything else holds the streams."""
    sys.stdout, sys.stderr = _OutlivesReader(sys.stdout), _OutlivesReader(sys.stderr)  # type: ignore[assignment]


class _OutlivesReader:
    """A text stream that drops its output once the pipe is closed."""

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
        """Point the descriptor at os.devnull, so that buffered text and the flush at exit succeed too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
