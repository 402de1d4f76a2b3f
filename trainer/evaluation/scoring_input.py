"""A file of responses in, rows to score out, grouped by (benchmark, method).

One JSON object per line:

    response            needed, unless token_ids is there
    prompt or question  needed: the prompt as the model read it, or a question to be put as a method puts it
    token_ids           the response's tokens, as evaluate's records hold them: then exactly those are scored
    id, benchmark, method, sample, ground_truth (or answer), finish_reason: optional

So the records of an earlier run are such a file. Without token_ids the text is tokenised by itself (together with the
prompt, the prompt's last token could swallow its beginning), and no end-of-sequence token is added: whether the
response ended is not known from its text. Without an id it is the line's number; without ground_truth it is not
correct. Values must not be null or NaN: such an id or ground_truth is refused. A list as
ground_truth holds answers of which any one is right (trainer.datasets.answers).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainer.catalogue.methods import Method
from trainer.datasets.answers import encodable, ground_truth
from trainer.datasets.files import decoded, parse_json
from trainer.evaluation.answers import make_record
from trainer.evaluation.prompts import encode_prompt, render
from trainer.evaluation.requests import Response
from trainer.records.record_files import Record, record_path

_UNNAMED = ("given", "given")  # benchmark and method of a row that names none


@dataclass(frozen=True)
class ScoringRow:
    """One response to score."""

    key: tuple[str, int]  # id, sample
    benchmark: str
    method: str
    question: str
    ground_truth: str
    prompt: str
    text: str | None
    finish_reason: str
    prompt_ids: tuple[int, ...]
    response_ids: array  # of C ints: a file may hold thousands of responses of 16384 tokens

    def record(self, tokenizer: PreTrainedTokenizerBase, entropies: list[float]) -> Record:
        """The record of this row (records.py)."""
        return make_record(
            tokenizer,
            Response(list(self.response_ids), entropies, self.finish_reason),
            identity=self.key[0],
            sample=self.key[1],
            benchmark=self.benchmark,
            method=self.method,
            question=self.question,
            ground_truth=self.ground_truth,
            prompt=self.prompt,
            text=self.text,
        )


def read_scoring_input(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, method: Method
) -> dict[tuple[str, str], list[ScoringRow]]:
    """The rows of a file, by (benchmark, method), in the file's order.

    Args:
        path: jsonl, see this file's header.
        tokenizer: of the model that scores.
        method: how a question without a prompt is put.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not as it should be (it is named), a key comes twice, or there is no line.
    """
    groups: dict[tuple[str, str], list[ScoringRow]] = {}
    seen: set[tuple[str, str, str, int]] = set()
    with Path(path).expanduser().open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = decoded(line, f"{path}, line {number}")
            if not text.strip():
                continue
            try:
                row = _row(parse_json(text), number, tokenizer, method)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            key = (row.benchmark, row.method, *row.key)
            if key in seen:
                raise ValueError(f"{path}, line {number}: id {row.key[0]!r}, sample {row.key[1]} comes twice")
            seen.add(key)
            groups.setdefault((row.benchmark, row.method), []).append(row)
    if not groups:
        raise ValueError(f"{path} holds no responses")
    return groups


def _text(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is a {type(value).__name__}, expected text")
    return value if value is None else encodable(value, name)


def _identity(given: dict[str, Any], number: int) -> str:
    identity = given.get("id", number)
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ValueError(f"id is {identity!r}: expected text or a whole number, or no id at all")
    return encodable(str(identity), "id")


def _ground_truth(given: dict[str, Any]) -> str:
    name = next((name for name in ("ground_truth", "answer") if name in given), None)
    if name is None or given[name] == "":
        return ""
    if given[name] is None:
        raise ValueError(f"{name} is null: leave it out where there is none, or say what is right")
    return ground_truth(given[name], name)


def _row(given: Any, number: int, tokenizer: PreTrainedTokenizerBase, method: Method) -> ScoringRow:
    if not isinstance(given, dict):
        raise ValueError(f"expected a JSON object, got a {type(given).__name__}")
    text, prompt, question = (_text(given, name) for name in ("response", "prompt", "question"))
    if prompt is None:
        if question is None:
            raise ValueError("neither prompt nor question is there")
        prompt = render(tokenizer, question, method)
    token_ids = given.get("token_ids")
    if token_ids is None:
        if text is None:
            raise ValueError("neither response nor token_ids is there")
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    vocabulary = len(tokenizer)
    if not isinstance(token_ids, list) or not all(type(i) is int and 0 <= i < vocabulary for i in token_ids):
        raise ValueError(f"token_ids: expected integers from 0 to {vocabulary - 1}, the tokens of the scoring model")
    sample = given.get("sample", 0)
    if type(sample) is not int:
        raise ValueError(f"sample is {sample!r}, expected an integer")
    benchmark = _text(given, "benchmark") or _UNNAMED[0]
    method_name = _text(given, "method") or _UNNAMED[1]
    record_path("", benchmark, method_name)  # names that cannot be a file's
    finish_reason = given.get("finish_reason", "stop")
    if finish_reason not in ("stop", "length"):
        raise ValueError(f"finish_reason is {finish_reason!r}, expected 'stop' or 'length'")
    return ScoringRow(
        key=(_identity(given, number), sample),
        benchmark=benchmark,
        method=method_name,
        question=question if question is not None else prompt,
        ground_truth=_ground_truth(given),
        prompt=prompt,
        text=text,
        finish_reason=finish_reason,
        prompt_ids=encode_prompt(tokenizer, prompt),
        response_ids=array("i", token_ids),
    )
