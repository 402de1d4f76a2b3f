"""tqdm's bar on a terminal; in a file, a line now and then.

A bar redraws itself with carriage returns, and around every line that tqdm.write prints. A terminal shows the last
state; a file keeps them all. Where stderr is no terminal, a line is written when the count has changed and
LINE_SECONDS have passed since the last one, and a last line at the end; none is written twice.
"""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

LINE_SECONDS = 30.0


class ProgressBar(tqdm):
    """tqdm, with its arguments."""

    def __init__(self, *args, **options) -> None:
        stream = options.get("file") or sys.stderr
        self.in_lines = not stream.isatty()
        self._shown: int | float | None = None  # the count of the last line
        self._shown_at = -LINE_SECONDS
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None, *, last: bool = False) -> bool:
        if not self.in_lines:
            return bool(super().display(msg, pos))
        due = last or time.monotonic() - self._shown_at >= LINE_SECONDS
        if not due or self.n == self._shown or (not self.n and not last):
            return False
        self._shown, self._shown_at = self.n, time.monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        if not self.in_lines:
            super().clear(nolock)

    def close(self) -> None:
        if self.in_lines and not self.disable:
            self.display(last=True)
            self.leave = False  # tqdm would draw its last state once more, and an empty line
            self.sp = None
        super().close()
