"""A data set of this project as the parquet file that verl reads.

    python -m cer_verl.prepare_data gsm8k --split train --output train.parquet
    python -m cer_verl.prepare_data problems.jsonl --output validation.parquet

In: what trainer.datasets loads: a known name, a hub id, a local json, jsonl or parquet file. Out: one row per problem
with verl's columns: data_source, prompt (messages, with the instruction to box the answer), ability, reward_model
(ground_truth), extra_info (index, split, id).
"""

from __future__ import annotations

import argparse
import sys

import datasets

from trainer.datasets import BOXED_INSTRUCTION, DataError, load_problems


def verl_rows(problems: datasets.Dataset, data_source: str, split: str) -> datasets.Dataset:
    """Returns verl's columns for problems (prompt, ground_truth, id) of trainer.datasets."""
    rows = [
        {
            "data_source": data_source,
            "prompt": problem["prompt"],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem["ground_truth"]},
            "extra_info": {"index": index, "split": split, "id": str(problem["id"])},
        }
        for index, problem in enumerate(problems)
    ]
    return datasets.Dataset.from_list(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cer_verl.prepare_data", description=__doc__.split("\n")[0])
    parser.add_argument("source", help="gsm8k, math500, aime24, aime25, a hub id, or a json, jsonl or parquet file")
    parser.add_argument("--split", help="split or slice of one, as train[:100]; without it, the source's usual one")
    parser.add_argument("--data_dir", help="folder that holds known data sets as NAME/SPLIT.jsonl; without it, the hub")
    parser.add_argument("--max_samples", type=int, help="keep the first so many problems")
    parser.add_argument("--instruction", default=BOXED_INSTRUCTION, help="put behind every question (%(default)s)")
    parser.add_argument("--output", required=True, help="the parquet file to write")
    options = parser.parse_args(arguments)
    try:
        problems = load_problems(
            options.source,
            split=options.split,
            data_dir=options.data_dir,
            max_samples=options.max_samples,
            instruction=options.instruction,
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    verl_rows(problems, options.source, options.split or "").to_parquet(options.output)
    print(f"{len(problems)} problems -> {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
