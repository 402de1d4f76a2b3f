"""Text made to break the grader: it is wrong, takes no time, raises nothing."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.grading import extract_answer, grade

HOSTILE = [
    "{" * 1_000_000,
    "\\boxed{" * 140_000,
    "\\boxed{" * 1000 + "5" + "}" * 1000,
    "\\boxed{" + "(" * 900 + "1" + ")" * 900 + "}",
    "\\boxed{" + "\\frac{1}{" * 100 + "2" + "}" * 101,
    "\\boxed{10^{10^{10}}}",
    "\\boxed{10^10^10}",
    "\\boxed{x^{999^{999^{999}}}}",
    "\\boxed{99999999!}",
    "\\boxed{x+((((9!)!)!)!)!}",
    "\\boxed{x + 100!!!!}",
    "\\boxed{\\sin(10^{999} x)^{999}}",
    "\\boxed{(x+y+z)^{999}+\\pi}",
    "\\boxed{((((x+1)^{9}+y)^{9}+z)^{9}+a)^{1}}",
    "\\boxed{" + "9" * 1900 + "}",
    "\\boxed{1e9999999}",
    "\\boxed{" + "1," * 900 + "1}",
    "\\boxed{" + "a " * 900 + "}",
    "\\boxed{" + " " * 1900 + "}",
    "\\boxed{" + "\\text{" * 200 + "}" * 201,
    "\\boxed{5\x00}",
    "\\boxed{\ud800\udfff}",
    "\\boxed{\u0665\u0663}",
    "\\boxed",
    "####" * 100_000,
    "the answer is " * 50_000,
    "answer" + " " * 200_000,
    "\n" * 200_000 + "answer",
    "$" * 200_000,
    "\\" * 200_000,
    "#### a\n" * 30_000,
    "<answer>" * 25_000,
    "<think></think>" * 13_000,
    "\\boxed{" + "{\\over" * 250 + "}" * 251,
    "\\boxed{" + "\\sqrt(" * 250 + ")" * 250 + "}",
    "\\boxed{" + "one hundred and " * 120 + "}",
    "\\boxed{" + "the value " * 190 + "}",
    "\\boxed{" + "1=" * 900 + "1}",
    "\\boxed{" + "1<" * 900 + "1}",
    "\\boxed{((((a+b)^{9}+c)^{9}+d)^{9}+x)^{9}}",
    "\\boxed{" + "x \\text{ and } " * 120 + "x}",
    "\\boxed{" + "1\\," * 600 + "1}",
]


@pytest.mark.parametrize("gold", ["5", "x^2+1", "\\text{Evelyn}", "(1, 2)", "\\frac{\\pi}{2}"])
def test_hostile_text_is_wrong_and_takes_no_time(gold):
    slowest = 0.0
    for response in HOSTILE:
        start = time.process_time()
        assert grade(response, gold) is (response.startswith("\\boxed{\\boxed{") and gold == "5" and "5" in response)
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 2.0


def test_hostile_ground_truth_is_never_right():
    for gold in HOSTILE:
        assert grade("\\boxed{5}", gold) is ("5}" in gold and gold.startswith("\\boxed{\\boxed{"))


WITHOUT_DIGITS = [
    " ", "\n", "\x00", "the answer is ", r"\boxed{", "}", "{", r"\frac", r"\sqrt", "^", "_", "(", ")", "[", "]", ",",
    "x", r"\pi", "-",
    "+", "=", r"\text{", "cm", "%", "$", r"\\", "&", r"\begin{pmatrix}", r"\end{pmatrix}", r"\{", r"\}", r"\pm",
    "####", "!", r"\cup",
    "<", r"\infty", "or", "e", "i", "°", "|", "**", "'", r"\left", r"\in", r"\approx", r"\le", r"\overline{", r"\,",
    "~", "</think>",
    "<answer>", "</answer>", r"\over", r"\textcolor{red}{", "to", ":", "and a half", "minus", r"\tag{", r"\setminus",
    r"\reals", "is",
]  # fmt: skip
NOISE = st.lists(st.sampled_from(WITHOUT_DIGITS), max_size=20).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NOISE, st.text(st.characters(exclude_categories=("N",)), max_size=60))
def test_no_text_without_a_number_in_it_is_right_and_none_raises(notation, unicode):
    for text in (notation, unicode):
        for response in (
            text,
            f"\\boxed{{{text}}}",
            f"#### {text}",
            f"<answer>{text}</answer>",
            f"The answer is {text}",
        ):
            assert grade(response, "41") is False
            assert grade("\\boxed{41}", response) is False


@settings(max_examples=200, deadline=None)
@given(NOISE, st.text(max_size=60))
def test_a_box_at_the_end_is_the_answer_whatever_stands_before_it(notation, unicode):
    response = f"{notation} {unicode}\n\\boxed{{41}}"
    assert extract_answer(response) == "41"
    assert grade(response, "41")
    assert not grade(response, "42")
