"""Local data files -> records, read as they are written.

In: paths of .jsonl, .json and .parquet files. Out: a list of dicts. A path is a path: [ ] * and :: in it mean nothing.
Numbers keep their digits: integers have any size, and decimals stay text (NumberText); read as a float,
12345678901234567890123 would be 1.2345678901234568e+22. A .json file holds a list of objects, an object of columns, or
one object per line. Every failure is a DataError with file and line.
"""

import json
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".jsonl", ".json", ".parquet")


class DataError(ValueError):
    """The data cannot be used as asked; the message says where and why."""


class NumberText(str):
    """A decimal number of a JSON file, in the file's own digits."""

    __slots__ = ()


def parse_json(text: str):
    """json.loads, with decimals as NumberText. Raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text, parse_float=NumberText)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_rows(path: Path) -> list[dict]:
    """Returns the records of one file. Raises DataError."""
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        return list(_read_lines(path)) if path.suffix == ".jsonl" else _read_json(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_parquet(path: Path) -> list[dict]:
    import pyarrow
    from pyarrow import parquet

    try:
        with path.open("rb") as file:  # a file object: a name could be taken for a pattern or a protocol
            return parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: this is no parquet file that can be read: {error}") from error


def _read_lines(path: Path) -> Iterator[dict]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if text := decoded(line, where).strip():
                try:
                    record = parse_json(text)
                except ValueError as error:
                    raise DataError(f"{where}: this is no JSON: {error}") from error
                yield _record(record, where)


def _read_json(path: Path) -> list[dict]:
    lines = path.read_bytes().splitlines(keepends=True)
    text = "".join(decoded(line, f"{path}, line {number}") for number, line in enumerate(lines, 1))
    if not text.strip():
        return []
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a second value: one per line
            return list(_read_lines(path))
        raise DataError(f"{path}, line {error.lineno}: this is no JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"{path}: this is no JSON: {error}") from error
    if isinstance(content, dict):
        lengths = {len(column) if isinstance(column, list) else None for column in content.values()}
        if len(lengths) != 1 or None in lengths:
            return [content]
        return [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of JSON objects, got a {type(content).__name__}")
    return [_record(record, f"{path}, record {number}") for number, record in enumerate(content, 1)]


def _record(record, where: str) -> dict:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def decoded(line: bytes, where: str) -> str:
    """A line of a file as text. Raises DataError for what is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if where.endswith(", line 1") else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {_what_it_is(line, error.start)}") from None


_PACKED = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"PK\x03\x04": "unzip",
}


def _what_it_is(line: bytes, place: int) -> str:
    """What a line is that is no UTF-8, as far as it shows, and what to do about it."""
    if tool := next((tool for magic, tool in _PACKED.items() if line.startswith(magic)), None):
        return f"this file is compressed: unpack it first ({tool})"
    encoding, whose = "ISO-8859-1", "If the file is in Latin-1"
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding, whose = "UTF-16", "The file is in UTF-16"
    convert = f"convert it: iconv -f {encoding} -t UTF-8 OLD > NEW"
    return f"byte {place + 1} (0x{line[place]:02x}) is not UTF-8. {whose}, {convert}"
