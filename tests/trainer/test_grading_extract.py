"""Where the grader finds the answer in a response."""

import pytest

from trainer.grading import extract_answer, grade


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 42.", "42"),
        ("**Final Answer:** 42\n", "42"),
        ("Answer: (B)", "(B)"),
        ("Some text\nanswer: 7 apples.\n", "7 apples"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is: 12,000 dollars. I hope so.", "12,000 dollars"),
        ("final answer is\n$$\n5\n$$", "5"),
        ("The answer is 1. No, the answer is 2.", "2"),
        ("#### 18", "18"),
        ("#### 5\n#### 6\n", "6"),
        ("#### 18 dollars\n\nI hope this helps.", "18 dollars"),
        ("#### \\$1,000.50\nThank you!", "\\$1,000.50"),
        ("#### Evelyn", "Evelyn"),
        ("#### 1 000\nThank you!", "1 000"),
        ("The answer is 1 000 apples.", "1 000 apples"),
        ("#### 5\nNo, wait. The answer is 6.", "6"),
        ("##### 3", None),
        ("The answer is 7\n#### 18", "18"),
        ("#### 18 and \\boxed{5} before that", "5"),
        ("\\boxed 5", "5"),
        ("$\\boxed3$", "3"),
        ("\\fbox{7}", "7"),
        ("\\boxed{5} and then \\boxed{6}", "6"),
        ("\\boxed{5} and then, cut off, \\boxed{6", "5"),
        ("\\boxed{\\frac{1}{2}} as \\boxed{} was asked for", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{5\n}", "5"),
        ("\\boxed\n{5}", "5"),
        ("\\boxed \n  {5}", "5"),
        ("\\boxed[2pt]{5}", "5"),
        ("\\framebox{5}", "5"),
        ("\\boxed\\frac12", "\\frac12"),
        ("the answer is \\boxed{12", None),
        ("\\boxed{a{b}", None),
        ("I do not know", None),
        ("", None),
        (None, None),
        (b"\\boxed{5}", None),
    ],
)
def test_the_last_stated_answer_is_extracted(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>\\boxed{5}</think> #### 3", "3"),
        ("<think>\\boxed{5}</think> The answer is 7.", "7"),
        ("<think>It is 5.</think> \\boxed{4}", "4"),
        ("<think>\\boxed{5}</think> <answer>6</answer>", "6"),
        ("<think>\\boxed{5}</think> I put it into \\boxed{} above.", "5"),  # nothing stated after it
        ("<think>\\boxed{5}</think> So be it.", "5"),  # the published rule pays for it
        ("<think>\\boxed{5}", "5"),
        ("<think>\\boxed{5}</think> <think>\\boxed{6}</think> #### 3", "3"),
        ("<thinking>\\boxed{5}</thinking> #### 3", "3"),
        ("<reasoning>\\boxed{5}</reasoning> #### 3", "3"),
        ("[THINK]\\boxed{5}[/THINK] #### 3", "3"),
        ("◁think▷\\boxed{5}◁/think▷ #### 3", "3"),
        ("<|begin_of_thought|>\\boxed{5}<|end_of_thought|> #### 3", "3"),
        ("<|channel|>analysis<|message|>\\boxed{5}<|end|><|start|>assistant<|channel|>final<|message|>#### 3", "3"),
    ],
)
def test_where_thinking_has_ended_only_what_follows_counts_if_it_states_an_answer(response, answer):
    assert extract_answer(response) == answer
    assert grade(response, answer)
    if answer != "5":
        assert not grade(response, "5")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("#### 2. Add 3 and 4. The answer is 7.", "7"),
        ("#### 2. Add\n3 + 4 = 7\n\nThe answer is 7.", "7"),
        ("#### 1) Add\n7\n#### 2) Check\nThe answer is 7.", "7"),
        ("#### Step 1\n3 + 4\n#### Final Answer\n7", "7"),
        ("#### Step 2: 3 + 4\nThe answer is 7", "7"),
        ("#### 7\n\n#### Note\nI added.", "7"),
        ("#### **Final Answer:** 7", "7"),
        ("#### Conclusion\n**Answer:** 7", "7"),
        ("#### II. Add\nThe answer is 7.", "7"),
        ("#### 2 Adding up\nThe answer is 7.", "7"),
        ("#### 2: Add\nit all", None),
        ("#### 2 - Add them\nall", None),
        ("#### The sum\nis seven", None),
        ("#### Explanation", None),
    ],
)
def test_a_markdown_heading_is_no_separator_of_an_answer(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("It is \\boxed{5}. I put it in \\boxed as asked.", "5"),
        ("It is \\boxed{5}, in \\boxed{...} as asked", "5"),
        ("It is \\boxed{5}, as \\boxed{\\text{your answer}} was asked for", "5"),
        ("\\boxed{5}. The form is \\boxed{\\ldots}.", "5"),
        (
            "\\boxed{5}. The form is \\boxed{ANSWER}, `\\boxed{}`, \\boxed{?} or \\boxed{[final answer here]}.",
            "5",
        ),
        ("Put the answer in \\boxed{answer}: \\boxed{3}", "3"),
        ("\\boxed{5} and \\boxed, as I said", "5"),
        ("\\boxed{...}", None),
        ("\\boxed{\\text{final answer}}", None),
        ("in \\boxed as asked", None),
        ("\\boxed{\\text{no solution}}", "\\text{no solution}"),
        ("\\boxed{x}", "x"),
    ],
)
def test_placeholders_and_mentions_of_a_box_are_no_answers(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>5</answer>", "5"),
        ("<ANSWER>\n5\n</ANSWER>", "5"),
        ("<answer>\\boxed{5}</answer>", "5"),
        ("<answer>The answer is 5.</answer>", "5"),
        ("\\boxed{4} <answer>5</answer>", "5"),
        ("<answer>4</answer> \\boxed{5}", "5"),
        ("Into <answer> your answer here </answer>: <answer>5</answer>", "5"),
        ("#### 4\n<answer>5</answer>", "5"),
        ("<answer> your answer here </answer>", None),
        ("<answer></answer>", None),
        ("<answer>5", None),  # cut off: it may have become 50
    ],
)
def test_answer_tags(response, answer):
    assert extract_answer(response) == answer


def test_a_negative_space_of_latex_ends_no_sentence():
    assert extract_answer(r"The answer is $11,\! 111$. Done.") == r"$11,\! 111$"
    assert extract_answer("The answer is 5! Done.") == "5"
