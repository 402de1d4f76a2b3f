"""Where records come from: known data sets on the hub or in a local directory, files, any hub id.

In: a source, a split. Out: a `datasets.Dataset` of records as they are, and the columns that hold question, answer, id.
Every failure is a DataError that names the source and what to do.
"""

import json
import re
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from trainer.arithmetic.problems import arithmetic_problems
from trainer.catalogue.data_sets import DATA_SETS, MADE


class DataError(ValueError):
    """The data cannot be used as asked; the message says where and why."""


QUESTION_COLUMNS = ("problem", "question", "Problem", "Question", "prompt")
ANSWER_COLUMNS = ("ground_truth", "answer", "Answer", "final_answer", "solution")
ID_COLUMNS = ("id", "unique_id", "ID", "uid")

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SPLIT = re.compile(r"(\w+)(\[[^\]]*\])?")


def load_records(
    source: str, *, data_dir: str | Path | None = None, split: str | None = None, config: str | None = None
) -> tuple[datasets.Dataset, str]:
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
        path = Path(data_dir) / source
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
    if path.suffix in _READERS or path.is_file():
        if not path.is_file():
            raise DataError(f"there is no file {path} (looked from {Path.cwd()})")
        if path.suffix not in _READERS:
            raise DataError(f"{path}: expected a file that ends in {', '.join(_READERS)}")
        own_split = path.stem if path.stem in ("train", "test", "validation") else "train"
        named = own_split if split is None else _name_of(split)
        return _load_files(source, {named: [path]}, split or own_split)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        known_names = ", ".join((*DATA_SETS, *MADE))
        raise DataError(f"{source!r} is no file, no directory, no hub id (owner/name) and none of {known_names}")
    return _load_hub(source, config, split or "train"), split or "train"


def _made(source: str, split: str) -> tuple[datasets.Dataset, str]:
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
    return datasets.Dataset.from_list(rows), split


def column(records: datasets.Dataset, asked: str | None, candidates: tuple[str, ...], role: str, option: str) -> str:
    """Returns the name of the column that holds `role`: the one asked for, or the first of the usual ones."""
    present = records.column_names
    if asked is not None:
        if asked not in present:
            raise DataError(f"there is no column {asked!r} for the {role}: the columns are {', '.join(present)}")
        return asked
    for name in candidates:
        if name in present:
            return name
    raise DataError(f"no column looks like the {role}: the columns are {', '.join(present)}; name it with {option}")


def _files_by_split(directory: Path) -> dict[str, list[Path]]:
    """{split: files}: train.jsonl, or train-00000-of-00002.parquet and so on as the hub lays them out."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix in _READERS and not any(part.startswith(".") for part in path.relative_to(directory).parts):
            name = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
            splits.setdefault(name, []).append(path)
    if not splits:
        raise DataError(f"{directory}: no file in it ends in {', '.join(_READERS)}")
    return splits


def _name_of(split: str) -> str:
    """The split of which `split` is a slice; its form has been checked."""
    return split.partition("[")[0]


def _load_files(source: str, files: dict[str, list[Path]], split: str | None) -> tuple[datasets.Dataset, str]:
    if split is None:
        split = next(iter(files)) if len(files) == 1 else "train"
    name = _name_of(split)
    if name not in files:
        raise DataError(f"{source}: there is no split {name!r}: there are {', '.join(files)}")
    paths = files[name]
    kinds = {_READERS[path.suffix] for path in paths}
    if len(kinds) > 1:
        raise DataError(f"{source}: the files of split {name!r} are of different kinds: {', '.join(map(str, paths))}")
    if any(path.stat().st_size == 0 for path in paths):
        raise DataError(f"{source}: split {name!r} is empty: {', '.join(map(str, paths))} has no records")
    try:
        loaded = datasets.load_dataset(kinds.pop(), data_files={name: [str(path) for path in paths]}, split=split)
    except (DatasetGenerationError, ValueError, OSError) as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{source}: split {split!r} is empty") from error
        for path in paths:
            _find_bad_record(path)
        raise DataError(f"{source}: cannot read split {split!r}: {_cause(error)}") from error
    return loaded, split


def _find_bad_record(path: Path) -> None:
    """Raises DataError with the line of the first record that is no JSON object."""
    if path.suffix != ".jsonl":
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: this is no JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}")


def _load_hub(hub_id: str, config: str | None, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(hub_id, config, split=split)
    except Exception as error:  # the hub client raises a family of network errors with no common base
        raise DataError(
            f"{hub_id}: cannot load split {split!r} from the hub: {_cause(error)}. Without network, pass a local "
            "file or directory (for a known data set, its parent directory as data_dir)"
        ) from error


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip() or 'no details'}"
