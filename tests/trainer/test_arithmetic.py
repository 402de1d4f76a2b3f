"""Arithmetic problems: right answers, nothing held out is ever trained on, the same on every machine."""

from __future__ import annotations

import re

import pytest

from trainer.arithmetic.problems import FAMILIES, arithmetic_problems
from trainer.catalogue.data_sets import MADE
from trainer.datasets import DataError, load_problems
from trainer.evaluation.benchmarks import load_benchmark
from trainer.prompts.prompt import packaged_names, read_prompt

UP, DOWN = ("buys", "finds", "gets"), ("sells", "loses", "gives away")


def numbers(question: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", question))


def phrasing(question: str) -> str:
    return re.sub(r"\d+", "#", question)


def computed(question: str) -> int:
    """The answer, read off the words."""
    first, *others = numbers(question)
    if "take" in question:  # "if you take b from a"
        return others[0] - first
    if "add" in question:  # "if you add b to a"
        return others[0] + first
    if "How many" in question:
        verbs = re.findall("|".join((*UP, *DOWN)), question)
        return first + sum(n if verb in UP else -n for verb, n in zip(verbs, others, strict=True))
    if any(word in question for word in ("*", "multiply", "times", "product")):
        return first * others[0]
    if any(word in question for word in (" - ", "minus", "difference")):
        return first - others[0]
    return first + others[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_is_what_the_words_say(family, split):
    problems = arithmetic_problems(family, split)
    assert len(problems) >= 60
    for problem in problems:
        assert problem.answer == computed(problem.question) >= 0, problem.question
    assert len({problem.id for problem in problems}) == len(problems)
    assert len({problem.question for problem in problems}) == len(problems)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixed"])
def test_numbers_and_phrasings_of_the_test_split_are_never_trained_on(family):
    train, test = (arithmetic_problems(family, split) for split in ("train", "test"))

    def asked(problems):  # "take b from a" and "a - b" ask for the same numbers
        return {(*sorted(numbers(p.question)), p.answer) for p in problems}

    if family in ("sums", "large_sums", "products"):  # 3 + 8 may be trained on where 8 + 3 is held out
        train_pairs = {p.id.rsplit("-", 1)[0] for p in train}
        assert not train_pairs & {p.id.rsplit("-", 1)[0] for p in test}
    elif family == "differences":
        assert not asked(train) & asked(test)
    assert not {phrasing(p.question) for p in train} & {phrasing(p.question) for p in test}


def test_the_numbers_of_the_worked_examples_are_not_asked():
    shown = {numbers(example.question) for name in packaged_names() for example in read_prompt(name).examples}
    for family in ("sums", "differences", "products"):
        for split in ("train", "test"):
            asked = {numbers(problem.question) for problem in arithmetic_problems(family, split)}
            assert not asked & {pair for pair in shown if len(pair) == 2}


def test_mixed_holds_all_of_its_three():
    parts = [p for family in ("sums", "differences", "products") for p in arithmetic_problems(family, "test")]
    mixed = arithmetic_problems("mixed", "test")
    assert mixed != parts
    assert sorted(mixed, key=lambda p: p.id) == sorted(parts, key=lambda p: p.id)
    assert len(mixed) >= 256


def test_the_first_problems_are_the_same_on_every_machine():
    assert [p.question for p in arithmetic_problems("mixed", "test")[:3]] == [
        "Find the product of 7 and 7.",
        "What is the sum of 20 and 6?",
        "What is the sum of 8 and 7?",
    ]


def test_training_takes_the_one_split_and_evaluation_the_other():
    assert set(MADE) == {f"arithmetic.{family}" for family in FAMILIES}
    train = load_problems("arithmetic.sums", split="train[2:5]", instruction=None)
    expected = arithmetic_problems("sums", "train")[2:5]
    assert list(train["question"]) == [p.question for p in expected]
    assert list(train["ground_truth"]) == [str(p.answer) for p in expected]
    held_out = load_benchmark("arithmetic.sums", limit=4)
    assert [p.id for p in held_out] == [p.id for p in arithmetic_problems("sums", "test")[:4]]
    with pytest.raises(DataError, match="no split 'validation'"):
        load_problems("arithmetic.sums", split="validation")
    with pytest.raises(ValueError, match="no arithmetic problems called 'roots'"):
        arithmetic_problems("roots", "train")
