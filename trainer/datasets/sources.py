"""Where records come from: known data sets on the hub or in a local directory, files, any hub id.

In: a source, a split. Out: records as they are (files.py reads those of files), and the columns that hold question,
answer and id. Every failure is a DataError that names the source and what to do.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from trainer.arithmetic.problems import arithmetic_problems
from trainer.catalogue.data_sets import DATA_SETS, MADE
from trainer.datasets.files import SUFFIXES, DataError, read_rows

QUESTION_COLUMNS = ("problem", "question", "Problem", "Question", "prompt")
ANSWER_COLUMNS = ("ground_truth", "reward_model.ground_truth", "answer", "Answer", "final_answer", "solution")
ID_COLUMNS = ("id", "unique_id", "ID", "uid")

_SPLIT = re.compile(r"(\w+)(\[[^\]]*\])?")


@dataclass(frozen=True)
class Records:
    """Rows by number, each a dict; a column may be missing in some of them."""

    columns: list[str]
    rows: Sequence[dict] | datasets.Dataset

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict:
        return self.rows[row]


def load_records(
    source: str, *, data_dir: str | Path | None = None, split: str | None = None, config: str | None = None
) -> tuple[Records, str]:
    """Returns the records of one split, and the split's name.

    source: a name in DATA_SETS, a file, a directory, or a hub id. data_dir: where known data sets lie locally, as
    <data_dir>/<name>/<split>.jsonl (or .json, .parquet). split: one of its splits, a slice such as "train[:100]" too.
    """
    if source in MADE:
        return _made(source, split or "train")
    known = DATA_SETS.get(source)
    if split is not None and not _SPLIT.fullmatch(split):
        raise DataError(f'{source}: the split is {split!r}: expected a name, or a slice such as "train[:100]"')
    if known and data_dir is not None:
        path = Path(data_dir).expanduser() / source
        if not path.is_dir():
            raise DataError(f"{source}: there is no directory {path}")
        return _load_files(source, _files_by_split(path), split or known.split)
    if known:
        hub_split = split or known.split
        if known.hub_split and split in (None, known.split):
            hub_split = known.hub_split
        return _load_hub(known.hub_id, config or known.config, hub_split), split or known.split
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_files(source, _files_by_split(path), split)
    if path.suffix in SUFFIXES or path.is_file():
        if not path.is_file():
            raise DataError(f"there is no file {path} (looked from {Path.cwd()})")
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
        own_split = path.stem if path.stem in ("train", "test", "validation") else "train"
        named = own_split if split is None else _name_of(split)
        return _load_files(source, {named: [path]}, split or own_split)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        known_names = ", ".join((*DATA_SETS, *MADE))
        raise DataError(f"{source!r} is no file, no directory, no hub id (owner/name) and none of {known_names}")
    return _load_hub(source, config, split or "train"), split or "train"


def _made(source: str, split: str) -> tuple[Records, str]:
    """Problems of trainer/arithmetic; a slice such as "train[:100]" takes the first ones."""
    named = _SPLIT.fullmatch(split)
    try:
        problems = arithmetic_problems(source.partition(".")[2], named[1] if named else split)
    except ValueError as error:
        raise DataError(str(error)) from error
    if named and named[2]:
        first, colon, last = named[2].strip("[]").partition(":")
        if not colon or not (first + last).isdigit():
            raise DataError(f'{source}: the split is {split!r}: expected a slice such as "train[:100]"')
        problems = problems[int(first or 0) : int(last or len(problems))]
    rows = [{"id": made.id, "question": made.question, "answer": str(made.answer)} for made in problems]
    return Records(["id", "question", "answer"], rows), split


def column(records: Records, asked: str | None, candidates: tuple[str, ...], role: str, option: str) -> str:
    """Returns the name of the column that holds `role`: the one asked for, or the first of the usual ones."""
    shown = ", ".join(records.columns)
    if asked is not None:
        if not _is_there(records, asked):
            raise DataError(f"there is no column {asked!r} for the {role}: the columns are {shown}")
        return asked
    for name in candidates:
        if _is_there(records, name):
            return name
    raise DataError(f"no column looks like the {role}: the columns are {shown}; name it with {option}")


def _is_there(records: Records, name: str) -> bool:
    outer, dot, inner = name.partition(".")
    if name in records.columns or not dot or outer not in records.columns:
        return name in records.columns
    outers = (records[row].get(outer) for row in range(len(records)))
    return any(isinstance(value, dict) and inner in value for value in outers)


def value_of(record: dict, name: str):
    """What a record holds in a column; "reward_model.ground_truth" is ground_truth inside reward_model."""
    if name in record or "." not in name:
        return record.get(name)
    outer, _, inner = name.partition(".")
    inside = record.get(outer)
    return inside.get(inner) if isinstance(inside, dict) else None


def _files_by_split(directory: Path) -> dict[str, list[Path]]:
    """{split: files}: train.jsonl, or train-00000-of-00002.parquet and so on as the hub lays them out."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(directory).parts):
            name = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
            splits.setdefault(name, []).append(path)
    if not splits:
        raise DataError(f"{directory}: no file in it ends in {', '.join(SUFFIXES)}")
    return splits


def _name_of(split: str) -> str:
    """The split of which `split` is a slice; its form has been checked."""
    return split.partition("[")[0]


def _load_files(source: str, files: dict[str, list[Path]], split: str | None) -> tuple[Records, str]:
    if split is None:
        split = next(iter(files)) if len(files) == 1 else "train"
    name = _name_of(split)
    if name not in files:
        raise DataError(f"{source}: there is no split {name!r}: there are {', '.join(files)}")
    rows = [row for path in files[name] for row in read_rows(path)]
    if not rows:
        raise DataError(f"{source}: split {name!r} is empty: {', '.join(map(str, files[name]))} has no records")
    rows = [row for first, last in _slices(source, split, name, len(rows)) for row in rows[first:last]]
    return Records(list(dict.fromkeys(column for row in rows for column in row)), rows), split


def _slices(source: str, split: str, name: str, count: int) -> list[tuple[int, int]]:
    """(first, last) of what a slice such as "train[:100]" or "train[-10%:]" takes of `count` rows."""
    try:
        taken = datasets.ReadInstruction.from_spec(split).to_absolute({name: count})
    except (ValueError, AssertionError) as error:
        raise DataError(f'{source}: the split is {split!r}: expected a slice such as "train[:100]": {error}') from error
    return [(part.from_ or 0, count if part.to is None else part.to) for part in taken]


def _load_hub(hub_id: str, config: str | None, split: str) -> Records:
    try:
        loaded = datasets.load_dataset(hub_id, config, split=split)
    except Exception as error:  # the hub client raises a family of network errors with no common base
        raise DataError(
            f"{hub_id}: cannot load split {split!r} from the hub: {_cause(error)}. Without network, pass a local "
            "file or directory (for a known data set, its parent directory as data_dir)"
        ) from error
    return Records(loaded.column_names, loaded)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip() or 'no details'}"
