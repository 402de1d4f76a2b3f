"""Ctrl-C in a program that is still importing ends it at once: one line, exit code 130, no traceback.

In: SIGINT, as Python handles it by itself. Out: the process ends where the signal meets it, without unwinding.
Importing takes seconds, no `try` of a program stands around its own imports, and what is imported may swallow the
KeyboardInterrupt (transformers makes a ModuleNotFoundError of it). Nothing has been made yet that would be cleaned up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT


def end_at_once(said: str = "interrupted") -> None:
    """From here on Ctrl-C prints `said` and ends the process. Whoever ignores or handles SIGINT goes on doing so."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set a handler
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Ending(said))


def unwind_again() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again: there is something to clean up."""
    if isinstance(signal.getsignal(signal.SIGINT), _Ending):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def ending_at_once(said: str) -> Iterator[None]:
    """Around imports inside a program."""
    end_at_once(said)
    try:
        yield
    finally:
        unwind_again()


class _Ending:
    """The handler of SIGINT while a program imports."""

    def __init__(self, said: str) -> None:
        self._said = said

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # a reader that is gone; a write that the signal came into
            sys.stdout.flush()
            print(self._said, file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)
