r"""Records into problems: question and answer columns, the answer alone, the prompt's messages.

In: records of any source. Out: a Dataset with prompt, ground_truth, question and id, shuffled and cut as asked.

A question is text, or messages (messages.py): the last turn is the question, and the turns before it stay before it.
Messages say themselves how they ask, so by default nothing is put around them.
"""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy

from trainer.datasets.answers import encodable, ground_truth
from trainer.datasets.files import DataError, NumberText
from trainer.datasets.messages import Turn, question_and_turns
from trainer.datasets.sources import ANSWER_COLUMNS, ID_COLUMNS, QUESTION_COLUMNS, column, load_records, value_of
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
    prompt_of_messages: Prompt | None = None,
    shuffle_seed: int | None = None,
    max_samples: int | None = None,
    name_row: Callable[[int], str] | None = None,
    bad_rows: list[DataError] | None = None,
) -> datasets.Dataset:
    r"""Returns problems as a Dataset with the columns prompt, ground_truth, question and id.

    Args:
        source: a name of trainer/catalogue/data_sets.py, a json, jsonl or parquet file, a directory of them, a hub id.
        data_dir: local directory that holds known data sets as <name>/<split>.jsonl; None: the hub.
        split: a split or a slice of one ("train[:100]"); None: the source's usual one.
        config: configuration of a hub data set.
        question_column, answer_column: names of columns, where the usual ones are not meant; "a.b" is b inside a.
        system_prompt: content of a first message; None for none.
        instruction: appended to the question after a blank line; None or "" for none.
        prompt: how a question is put, instead of system_prompt and instruction.
        prompt_of_messages: the same for questions that are messages; None: as they are.
        shuffle_seed: shuffle the records with this seed first; None keeps their order.
        max_samples: keep only the first so many (of the shuffled ones).
        name_row: the id of a row (counted from 0) that has none of its own; None: "<source>-<split>-<row>".
        bad_rows: a list that takes what is wrong with rows that have no question or no answer, and these rows are left
            out; None: the first is raised.

    Raises:
        DataError: a source, split or column that is not there, an empty split, a record without question or answer.
    """
    records, split = load_records(source, data_dir=data_dir, split=split, config=config)
    if not len(records):
        raise DataError(f"{source}: split {split!r} is empty")
    question_name = column(records, question_column, QUESTION_COLUMNS, "question", "--question_column")
    answer_name = column(records, answer_column, ANSWER_COLUMNS, "answer", "--answer_column")
    id_name = next((name for name in ID_COLUMNS if name in records.columns), None)
    if max_samples is not None and max_samples < 1:
        raise DataError(f"max_samples is {max_samples}: expected at least 1")
    order = range(len(records))
    if shuffle_seed is not None:
        order = numpy.random.default_rng(shuffle_seed).permutation(len(records)).tolist()

    prompt = prompt or Prompt(system_prompt or None, instruction or None)
    prompt_of_messages = prompt_of_messages or Prompt()
    name_row = name_row or (lambda row: f"{Path(source).stem}-{split}-{row}")
    problems: list[dict] = []
    for row in order:
        if len(problems) == max_samples:
            break
        record, where = records[row], f"{source}, split {split!r}, record {row + 1}"
        try:
            question, turns = _question(value_of(record, question_name), f"{where}, column {question_name!r}")
            own_id = None if id_name is None else record.get(id_name)
            problems.append(
                {
                    "prompt": (prompt if turns is None else prompt_of_messages).messages(question, turns or ()),
                    "ground_truth": ground_truth(value_of(record, answer_name), f"{where}, column {answer_name!r}"),
                    "question": question,
                    "id": name_row(row) if own_id is None else encodable(str(own_id), f"{where}, column {id_name!r}"),
                }
            )
        except DataError as error:
            if bad_rows is None:
                raise
            bad_rows.append(error)
    if not problems and bad_rows:
        raise DataError(f"{source}: split {split!r} has no row with a question and an answer; {bad_rows[0]}")
    return datasets.Dataset.from_list(problems)


def _question(value, where: str) -> tuple[str, list[Turn] | None]:
    """(the question, the turns before it if it came as messages, else None)."""
    if isinstance(value, list) and value:
        return question_and_turns(value, where)
    if not isinstance(value, str) or isinstance(value, NumberText) or not value.strip():
        raise DataError(f"{where}: expected a question as text, got {value!r}")
    return encodable(value.strip(), where), None
