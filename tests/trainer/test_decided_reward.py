"""The price on what comes after the answer, against values worked out by hand from its equation."""

import math

import pytest

from trainer.rewards.decided import decided_at, decided_reward, exploring_pays, stated_at

# A completion is right where it ends in 7. AT_ONCE says 10 characters after its first statement, CHECKED 18 more.
AT_ONCE = "3 + 4 = 7 \\boxed{7}"
CHECKED = "3 + 4 = 7 . 9 - 2 = 7 , ok \\boxed{7}"  # the check is free: 15 characters after it
REPEATED = "3 + 4 = 7 . so 3 + 4 = 7 \\boxed{7}"  # a repetition is not: 25 after the first statement
WRONG_AT_ONCE = "3 + 4 = 8 \\boxed{8}"
WRONG_REPEATED = "3 + 4 = 8 . so 3 + 4 = 8 \\boxed{8}"


def rewards_of(texts, prompts=None, truths=None, **options):
    return decided_reward(
        completions=texts,
        ground_truth=truths or ["7"] * len(texts),
        completion_ids=[[0] * len(text) for text in texts],  # a token a character
        prompts=prompts,
        **options,
    )


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("1 + 3 = 4. So 1 + 3 = 4. \\boxed{4}", "1 + 3 = 4"),
        (
            "tom has 8 . 8 + 3 = 11 . 11 - 3 = 8 . that gives 8 . the answer is \\boxed{ 8 }",
            "tom has 8 . 8 + 3 = 11 . 11 - 3 = 8",
        ),
        ("First 9 comes out. No: it gives her 8. \\boxed{8}", "First 9 comes out. No: it gives her 8"),
        ("It is 18.5, then 18. \\boxed{18}", "It is 18.5, then 18. \\boxed{18"),
        ("\\boxed{7}", "\\boxed{7"),
        # one check that computes something new is free, a second and any repetition are not
        ("7 + 1 = 8 . check : 9 - 1 = 8 . check : 4 + 4 = 8 . \\boxed{8}", "7 + 1 = 8 . check : 9 - 1 = 8"),
        ("7 + 1 = 8 . so 7 + 1 = 8 . check : 9 - 1 = 8 . \\boxed{8}", "7 + 1 = 8 . so 7 + 1 = 8 . check : 9 - 1 = 8"),
    ],
)
def test_where_the_answer_stands_for_good(text, stated):
    assert text[: decided_at(text)] == stated


def test_the_first_statement_is_of_the_answer_that_is_given():
    text = "7 + 2 = 9 . no : 7 + 1 = 8 . that gives 8 . \\boxed{8}"
    assert text[: stated_at(text)] == "7 + 2 = 9 . no : 7 + 1 = 8"
    assert stated_at("hmm") is None
    assert decided_at("hmm") is None
    assert decided_at("") is None


def test_where_all_are_right_what_follows_the_answer_is_priced_by_the_median():
    assert rewards_of([AT_ONCE, REPEATED, CHECKED]) == pytest.approx(
        [1 + 0.5 * math.exp(-after / 15) for after in (10, 25, 15)]
    )
    explores = "could be 9 , 10 , 11 . no . " + AT_ONCE  # what comes before the answer is free
    first, second = rewards_of([AT_ONCE, explores])
    assert first == second == pytest.approx(1 + 0.5 / math.e)
    assert rewards_of([AT_ONCE, REPEATED], weight=0.0) == [1.0, 1.0]
    assert rewards_of([REPEATED, AT_ONCE], ["a", "b"])[0] == pytest.approx(1 + 0.5 / math.e)  # no rival, its own scale


def test_nothing_is_priced_while_those_that_go_on_are_right_more_often():
    # E = 10, 25, 25, 10 and c = 0, 1, 1, 1: mean E 17.5; covariance 7.5 + 7.5 - 7.5 > 0
    assert rewards_of([WRONG_AT_ONCE, REPEATED, REPEATED, AT_ONCE]) == [0.0, 1.0, 1.0, 1.0]


def test_where_those_that_go_on_are_wrong_more_often_right_ones_are_priced_in_every_group():
    # E = 25, 25, 10, 10 and c = 0, 1, 1, 1: covariance 7.5 - 7.5 - 7.5 < 0; A of the right ones 25, 10, 10
    rewards = rewards_of([WRONG_REPEATED, REPEATED, AT_ONCE, AT_ONCE])
    assert rewards == pytest.approx([0.0, 1 + 0.5 * math.exp(-2.5), 1 + 0.5 / math.e, 1 + 0.5 / math.e])


def test_exploring_is_judged_within_prompts_over_the_whole_batch():
    # the hard prompt's answers are long and wrong, the easy one's short and right: across prompts length looks bad;
    # within the hard prompt the longer answer is the right one, and that closes the price for the easy one too
    texts = [AT_ONCE, AT_ONCE, WRONG_REPEATED, REPEATED + " !"]
    assert rewards_of(texts, ["easy", "easy", "hard", "hard"]) == [1.0, 1.0, 0.0, 1.0]
    assert exploring_pays([1, 1, 9, 10], [True, True, False, True], [[0, 1], [2, 3]])
    assert not exploring_pays([1, 1, 9, 10], [True, True, False, True], [[0, 1, 2, 3]])
    assert not exploring_pays([1, 9], [True, True], [[0, 1]])  # a tie
    assert not exploring_pays([3, 3, 3], [True, False, True], [[0, 1, 2]])  # rounding decides nothing
    assert exploring_pays([5, 1, 9], [True, False, None], [[0, 1, 2]])  # a row that is not graded is left out
    assert not exploring_pays([], [], [])


def test_rows_without_ground_truth_have_no_reward_and_no_answer_no_price():
    logged = []
    rewards = rewards_of(
        [AT_ONCE, REPEATED, AT_ONCE, "hmm"],
        truths=["7", "7", None, "7"],
        log_metric=lambda name, value: logged.append((name, value)),
    )
    assert rewards == [1.0, 1.0, None, 0.0]  # the one without an answer said nothing after it, and is wrong
    assert [value for name, value in logged if name == "exploring_pays"] == [1.0]
    told = [value for name, value in logged if name == "tokens_after_answer"]
    assert told == pytest.approx([10, 25])  # of the right ones, a number each: TRL takes the mean
    assert rewards_of([]) == []


def test_completions_that_stop_at_the_same_word_have_the_same_reward_whatever_came_before():
    # a share of the tokens would tell them apart, and GRPO divides by the deviation of whatever differs
    long_words = "considering everything carefully : " + AT_ONCE
    rewards = decided_reward([long_words, AT_ONCE], ["7", "7"], [[0] * 12, [0] * 8])
    assert rewards[0] == rewards[1]


def test_lengths_are_asked_for():
    with pytest.raises(ValueError, match="needs completion_ids"):
        decided_reward(completions=[AT_ONCE], ground_truth=["7"])
