"""A bug put into a copy of the kernels, for the tests that the suite would notice it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from kernel_programs import CSRC


@dataclass(frozen=True)
class Bug:
    """``file``: below csrc/cuda, or csrc. ``occurrence``: which of several equal places is changed (from 0)."""

    kind: str
    program: str
    file: str
    good: str
    bad: str
    statuses: tuple[int, ...]
    occurrence: int = 0


def planted(bug: Bug, into: Path) -> Path:
    """A copy of csrc with the bug in it."""
    csrc = into / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("cpu", "*.cu", "*.cpp"))
    path = next(folder / bug.file for folder in (csrc / "cuda", csrc) if (folder / bug.file).is_file())
    parts = path.read_text().split(bug.good)
    assert len(parts) > bug.occurrence + 1, f"{bug.file} no longer holds {bug.good!r} {bug.occurrence + 1} times"
    head, tail = bug.good.join(parts[: bug.occurrence + 1]), bug.good.join(parts[bug.occurrence + 1 :])
    path.write_text(head + bug.bad + tail)
    return csrc
