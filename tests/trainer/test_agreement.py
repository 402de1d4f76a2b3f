"""Whether a policy stops where two of its calculations agree, against responses counted by hand."""

import random
import re

import pytest

from trainer.experiment import result_table
from trainer.experiment.agreement import agreement, first_agreement, results_of
from trainer.experiment.held_out import HeldOutResponses
from trainer.tiny.problems import WordProblem, draw_problems, draw_response
from trainer.tiny.tokenizer import word_tokenizer

PROBLEM = WordProblem("tom", "apples", ("buys", "loses"), 7, 3, -2)  # 8


def response(*results: int, answer: int) -> str:
    checks = [f"check this : 7 + 3 = 10 . 10 - 2 = {result} . that gives {result} ." for result in results]
    return " ".join(["<think> tom starts with 7 apples .", *checks, f"</think> the answer is \\boxed{{ {answer} }}"])


def numbers_of(texts: list[str], right: list[bool]) -> dict[str, float]:
    tokens = [len(text.split()) + 1 for text in texts]  # and the end token
    columns = [[0.0] * len(texts) for _ in range(4)]
    return agreement(HeldOutResponses(texts, right, tokens, *columns), [PROBLEM] * len(texts))


def test_stops_are_counted_after_two_results_by_whether_they_agree():
    texts = [
        response(8, 8, answer=8),  # agree, stops
        response(8, 8, 9, answer=8),  # agree, goes on
        response(9, 8, answer=8),  # differ, stops
        response(9, 8, 8, answer=8),
        response(9, 8, 7, 8, answer=8),
        response(8, answer=8),  # never makes a second
    ]
    numbers = numbers_of(texts, [True] * 6)
    assert (numbers["stops_agreed"], numbers["stops_agreed_of"]) == (0.5, 2)
    assert (numbers["stops_split"], numbers["stops_split_of"]) == (pytest.approx(1 / 3), 3)


def test_what_the_same_responses_had_been_worth_at_the_first_agreement():
    spoiled = response(8, 8, 9, 9, answer=9)  # right at the second result, and talked out of it
    confirmed_wrong = response(9, 9, 8, 8, answer=8)
    apart = response(9, 8, answer=9)  # no agreement: as it is
    numbers = numbers_of([spoiled, confirmed_wrong, apart], [False, True, False])
    assert numbers["accuracy_at_agreement"] == pytest.approx(1 / 3)
    two = len(response(8, 8, answer=8).split()) + 1
    assert numbers["length_at_agreement"] == pytest.approx(two)  # all three: two results and the answer
    assert "stops_agreed" in numbers
    assert "stops_split" not in numbers_of([spoiled], [False])


def test_results_are_those_of_calculations_and_recaps_are_none():
    text = response(9, 8, answer=8).replace("</think>", "to recap : tom starts with 7 apples . that gives 8 . </think>")
    assert [result for result, _ in results_of(text)] == [9, 8]
    assert first_agreement(results_of(text)) is None
    assert first_agreement([(9, 5), (8, 10), (9, 15), (8, 20)]) == (9, 15)


def test_a_drawn_response_that_stops_at_agreement_has_the_length_that_is_told():
    rng, tokenizer = random.Random(3), word_tokenizer()
    seen = 0
    for problem in draw_problems(60, seed=1, held_out=False):
        text = draw_response(rng, problem, "slips")
        results = results_of(text)
        found = first_agreement(results)
        if found is not None and found == results[-1]:
            seen += 1
            ids = tokenizer(text)["input_ids"]
            columns = [[0.0] for _ in range(4)]
            told = agreement(HeldOutResponses([text], [True], [0], *columns), [problem])
            assert told["length_at_agreement"] == len(ids) + 1
    assert seen > 10


def test_the_table_of_a_design_with_slips_shows_the_shares():
    row = {"problems": 4, "accuracy": 1.0, "accuracy_low": 0.5, "accuracy_high": 1.0, "length": 9.0}
    row |= {"teca": 0.1, "entropy_sum": 0.9, "explorations": 1.0, "recaps": 0.0}
    rows = {result_table.BEFORE: row | {"stops_agreed": 0.34, "stops_split": 0.35}, "accuracy": row}
    table = result_table.result_table(rows, design="slips")
    assert "| stop = | stop != |" in table
    assert re.search(r"\|\s+0\.34 \|\s+0\.35 \|", table)
    assert "stops by count" in table
    assert "stop =" not in result_table.result_table(rows, design="explore")
