r"""Records into problems: question and answer columns, the answer alone, the prompt's messages.

In: records of any source. Out: a Dataset with prompt, ground_truth, question and id, shuffled and cut as asked.
"""

from pathlib import Path

import datasets

from trainer.datasets.sources import (
    ANSWER_COLUMNS,
    ID_COLUMNS,
    QUESTION_COLUMNS,
    DataError,
    column,
    load_records,
)
from trainer.grading.boxes import last_boxed
from trainer.grading.extract import after_hashes
from trainer.prompts.prompt import Prompt

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def load_problems(
    source: str,
    *,
    data_dir: str | None = None,
    split: str | None = None,
    config: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    system_prompt: str | None = None,
    instruction: str | None = BOXED_INSTRUCTION,
    prompt: Prompt | None = None,
    shuffle_seed: int | None = None,
    max_samples: int | None = None,
) -> datasets.Dataset:
    r"""Returns problems as a Dataset with the columns prompt, ground_truth, question and id.

    Args:
        source: a name of trainer/catalogue/data_sets.py, a json, jsonl or parquet file, a directory of them, a hub id.
        data_dir: local directory that holds known data sets as <name>/<split>.jsonl; None: the hub.
        split: a split or a slice of one ("train[:100]"); None: the source's usual one.
        config: configuration of a hub data set.
        question_column, answer_column: names of columns, where the usual ones are not meant.
        system_prompt: content of a first message; None for none.
        instruction: appended to the question after a blank line; None or "" for none.
        prompt: how a question is put, instead of system_prompt and instruction.
        shuffle_seed: shuffle the records with this seed first; None keeps their order.
        max_samples: keep only the first so many (of the shuffled ones).

    Raises:
        DataError: a source, split or column that is not there, an empty split, a record without question or answer.
    """
    records, split = load_records(source, data_dir=data_dir, split=split, config=config)
    question_name = column(records, question_column, QUESTION_COLUMNS, "question", "--question_column")
    answer_name = column(records, answer_column, ANSWER_COLUMNS, "answer", "--answer_column")
    id_name = next((name for name in ID_COLUMNS if name in records.column_names), None)
    if not len(records):
        raise DataError(f"{source}: split {split!r} is empty")
    rows = list(range(len(records)))
    records = records.add_column("__row__", rows) if shuffle_seed is not None else records
    if shuffle_seed is not None:
        records = records.shuffle(seed=shuffle_seed)
        rows = records["__row__"]
    if max_samples is not None:
        if max_samples < 1:
            raise DataError(f"max_samples is {max_samples}: expected at least 1")
        records = records.select(range(min(max_samples, len(records))))

    prompt = prompt or Prompt(system_prompt or None, instruction or None)
    problems = []
    for row, record in zip(rows, records.to_list(), strict=False):
        where = f"{source}, split {split!r}, record {row + 1}"
        question = _question(record[question_name], f"{where}, column {question_name!r}")
        problems.append(
            {
                "prompt": prompt.messages(question),
                "ground_truth": ground_truth(record[answer_name], f"{where}, column {answer_name!r}"),
                "question": question,
                "id": f"{Path(source).stem}-{split}-{row}" if id_name is None else str(record[id_name]),
            }
        )
    return datasets.Dataset.from_list(problems)


def ground_truth(answer, where: str) -> str:
    r"""Returns the reference answer alone: what follows "####", what is in the last \boxed{}, or the text itself."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError(f"{where}: expected an answer as text or number, got {answer!r}")
    text = str(answer).strip()
    if "####" in text:
        alone = after_hashes(text)
    elif "\\boxed" in text or "\\fbox" in text:
        alone = last_boxed(text)
    elif "\n" in text:  # a worked solution, and no sign where its answer stands
        alone = None
    else:
        alone = text
    if not alone:
        shown = text if len(text) <= 200 else "..." + text[-200:]
        raise DataError(f"{where}: no answer in {shown!r}: expected the answer alone, '#### N' or \\boxed{{}}")
    return alone


def _question(value, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: expected a question as text, got {value!r}")
    return value.strip()
