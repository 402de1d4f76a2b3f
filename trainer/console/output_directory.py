"""The directory that `--output` names, checked before anything slow is done for it.

In: a word of a command line. Out: the path; or what is wrong with it, for argparse to say with the option's name.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def output_directory(word: str) -> Path:
    """A directory that is there, or that can be made.

    Raises:
        argparse.ArgumentTypeError: nothing (an empty variable of a shell: it would mean the current directory), a
            file, a place below a file, a place that this user may not write to.
    """
    if not word.strip():
        raise argparse.ArgumentTypeError("it is empty; name a directory, or . for the current one")
    path = Path(word).expanduser()
    nearest = next((place for place in (path, *path.parents) if os.path.lexists(place)), Path("."))
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"{nearest} is there and is no directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{nearest} is not writable")
    return path
