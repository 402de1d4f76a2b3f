r"""Problems to train and evaluate on, as TRL wants them.

In: the name of a known data set, a local json, jsonl or parquet file or a directory of such, or a hub id.
Out: a `datasets.Dataset` with the columns

    prompt         messages: the system prompt if there is one, then question and instruction
    ground_truth   the reference answer alone, as text
    question       the question alone
    id             the record's own, or "<source>-<split>-<row>"

    sources.py     names, hub ids, splits, columns
    files.py       jsonl, json and parquet files -> records, and what is wrong with them
    answers.py     the reference answer alone
    messages.py    questions that come as the turns of a conversation (TRL, verl)
    problems.py    records -> problems: columns, ground truth, prompt; shuffling and subsets
    length.py      leaving out prompts that are too long, by tokens of the model's chat template

Thinking on or off is the chat template's: pass `chat_template_kwargs={"enable_thinking": False}` to TRL's GRPOConfig
and the same to `filter_by_length`, whose prompts are then counted as TRL will render them.
"""

from trainer.datasets.files import DataError
from trainer.datasets.length import LengthReport, filter_by_length
from trainer.datasets.problems import BOXED_INSTRUCTION, load_problems

__all__ = ["BOXED_INSTRUCTION", "DataError", "LengthReport", "filter_by_length", "load_problems"]
