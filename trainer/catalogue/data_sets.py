"""Known data sets, in the order in which tables and figures have them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """Where a data set is on the hub, and what it is called. Locally it is <data_dir>/<name>/<split>.jsonl."""

    title: str
    hub_id: str
    config: str | None = None
    split: str = "test"  # the one to train on, where none is asked for; evaluation takes "test"
    hub_split: str | None = None  # what the hub calls `split`, if not so


DATA_SETS = {
    "gsm8k": DataSet("GSM8K", "openai/gsm8k", config="main", split="train"),
    "math500": DataSet("MATH500", "HuggingFaceH4/MATH-500"),
    "aime24": DataSet("AIME24", "Maxwell-Jia/AIME_2024", hub_split="train"),
    "aime25": DataSet("AIME25", "math-ai/aime25"),
}
# Made on the spot by trainer/arithmetic, split "train" and "test"; the name ends in a family of its problems.py.
MADE = {
    "arithmetic.sums": "Sums",
    "arithmetic.large_sums": "Sums of two digits",
    "arithmetic.differences": "Differences",
    "arithmetic.products": "Products",
    "arithmetic.stories": "Stories of one step",
    "arithmetic.two_steps": "Stories of two steps",
    "arithmetic.mixed": "Sums, differences, products",
}
EMBEDDED = "tiny"  # the word problems of trainer/tiny, made on the spot
EMBEDDED_TITLE = "Embedded problems"
