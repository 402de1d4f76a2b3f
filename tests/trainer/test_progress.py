"""The progress bar's pace: tokens as they are drawn, and a rest that counts what is under way."""

from __future__ import annotations

from trainer.evaluation.progress import Pace, Progress


def test_rest_counts_what_is_under_way():
    pace = Pace(drawn=1000, ended=600, seconds=10.0)  # 400 tokens are of responses that go on
    assert pace.tokens_per_second == 100
    assert pace.rest_seconds(8, mean_length=200.0) == (8 * 200 - 400) / 100
    assert pace.rest_seconds(1, mean_length=200.0) == 0  # longer than the mean already
    assert Pace().rest_seconds(8, 200.0) is None
    assert pace.rest_seconds(8, 0.0) is None


def test_tokens_are_counted_once_with_steps_and_without(capsys):
    ended = {"is_correct": True, "response_length": 3}
    with Progress("x", 2, []) as told:
        for unfinished in (2, 2, 1):  # two rows: the first ends with its third token
            told.step(unfinished)
        told.add([ended], last_tokens_only=True)
        assert told.pace.drawn == 3 + 3
        assert told.pace.ended == 3
    with Progress("x", 2, []) as silent:
        silent.add([ended])
        assert silent.pace.drawn == 3
        assert silent.running.shown() == {"acc": "1.000", "len": "3"}
    assert "tok/s" in capsys.readouterr().err
