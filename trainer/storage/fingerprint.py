"""Hashes that tell whether files are the same.

In: a file, or the directory of a model or adapter. Out: a SHA-256, in hexadecimal.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SHORT = 16  # hexadecimal digits that name one of a person's files or models
_BLOCKS, _BLOCK_BYTES = 128, 1 << 16
_WEIGHT_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def file_sha256(path: str | Path) -> str:
    """The hash of all of a file, 64 digits."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_fingerprint(path: str | Path) -> str | None:
    """A hash of a local model's or adapter's files, 16 digits; None if `path` is no directory (a name on the hub).

    Of large files 128 blocks are taken, evenly spread: hashing all of 16 GB would take longer than loading them, and a
    change in weights (training, a merged adapter) is a change in every block of the matrices it touches.
    """
    path = Path(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix not in _WEIGHT_FILES or not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _BLOCKS * _BLOCK_BYTES:
                digest.update(stream.read())
                continue
            for block in range(_BLOCKS):
                stream.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()[:SHORT]
