"""Evaluation records with chosen numbers: what the tests of the report and of the plots read."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.records.record_files import RecordWriter


def make_record(
    problem: str,
    sample: int = 0,
    *,
    correct: bool = True,
    entropies: list[float] | None = None,
    length: int = 4,
    clipped: bool = False,
    tokens: list[str] | None = None,
    benchmark: str = "gsm8k",
    method: str = "thinking",
) -> dict:
    """A record whose TECA is the running mean of `entropies` (default: all 0.5)."""
    entropies = [0.5] * length if entropies is None else entropies
    tokens = [f" t{i}" for i in range(len(entropies))] if tokens is None else tokens
    teca, total = [], 0.0
    for step, value in enumerate(entropies, start=1):
        total += value
        teca.append(total / step)
    return {
        "id": problem,
        "benchmark": benchmark,
        "method": method,
        "sample": sample,
        "question": f"What is {problem}?",
        "ground_truth": "7",
        "prompt": f"<user>What is {problem}?",
        "response": "".join(tokens),
        "extracted_answer": "7" if correct else None,
        "is_correct": correct,
        "response_length": len(entropies),
        "finish_reason": "length" if clipped else "stop",
        "tokens": tokens,
        "token_ids": list(range(len(tokens))),
        "token_entropies": entropies,
        "teca": teca,
    }


def write_run(directory: Path, records: list[dict], **settings) -> Path:
    """A directory as trainer.evaluate leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    for pair in sorted({(record["benchmark"], record["method"]) for record in records}):
        with RecordWriter(directory, *pair) as writer:
            writer.append(record for record in records if (record["benchmark"], record["method"]) == pair)
    return directory
