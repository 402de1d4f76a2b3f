"""Small real runs of python -m trainer.grpo in this process: the smoke recipe on a dozen problems, a second each."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def write_problems(path: Path, count: int = 12) -> Path:
    rows = [{"question": f"{n} + 2 = ?", "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small_options(directory: Path, *options: str, count: int = 12) -> list[str]:
    """A command line: 8 completions of 4 tokens a step, in <directory>/run."""
    data = write_problems(directory / "train.jsonl", count)
    sizes = "--max_completion_length 4 --report_to none --samples_per_log 1 --disable_tqdm true"
    places = ["--config", "smoke_gsm8k", "--dataset", str(data), "--output_dir", str(directory / "run")]
    return [*places, *sizes.split(), *options]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def steps_logged(directory: Path) -> list[int]:
    from trainer.training.run_log import LOG_FILE, read_log

    return [record["step"] for record in read_log(directory / LOG_FILE) if "loss" in record]
