"""Gold solutions of the real data sets against their own answers, and against others'."""

import json
from pathlib import Path

import pytest

from trainer.grading import grade, symbolic

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(path: str) -> list[dict]:
    if not (REAL_DATA / path).exists():
        pytest.skip(f"the real data set is not here: {REAL_DATA / path}")
    return [json.loads(line) for line in (REAL_DATA / path).read_text().split("\n") if line]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gsm8k_solution_is_right_against_its_own_answer_and_wrong_against_the_next(split):
    records = real(f"gsm8k/{split}.jsonl")
    answers = [record["answer"].rsplit("####", 1)[1].strip() for record in records]
    assert all(grade(record["answer"], answer) for record, answer in zip(records, answers, strict=True))
    for record, other in zip(records, answers[1:], strict=False):
        same = int(record["answer"].rsplit("####", 1)[1].replace(",", "")) == int(other.replace(",", ""))
        assert grade(record["answer"], other) is same


def test_every_math500_solution_is_right_against_its_answer_without_the_symbolic_judge(monkeypatch):
    monkeypatch.setattr(symbolic, "_verdict", lambda *_: pytest.fail("the gold texts are equal as they stand"))
    assert all(grade(record["solution"], record["answer"]) for record in real("math500/test.jsonl"))


def test_aime24_solutions_are_right_against_their_answers():
    assert all(grade(record["solution"], record["answer"]) for record in real("aime24/test.jsonl"))


@pytest.mark.parametrize("name", ["aime24", "aime25"])
def test_aime_answers_with_and_without_leading_zeros(name):
    for record in real(f"{name}/test.jsonl"):
        assert grade(f"\\boxed{{{int(record['answer'])}}}", record["answer"])
        assert grade(f"\\boxed{{{int(record['answer']):03d}}}", record["answer"])
        assert not grade(f"\\boxed{{{int(record['answer']) + 1}}}", record["answer"])
