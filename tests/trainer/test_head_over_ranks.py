"""A head in an FSDP2 group of its own: tokens gathered in place of the weight, to the same numbers."""

from __future__ import annotations

import pytest
import rank_heads

from bench.scaling_on_cpu import on_ranks
from trainer.head_over_ranks import tokens_are_fewer


@pytest.mark.parametrize(
    ("ranks", "family", "frozen"),
    [(2, "phi", False), (3, "llama", True)],
    ids=["2 processes, trained, with a bias", "3 processes, frozen"],
)
def test_gathering_tokens_gives_what_gathering_the_weight_gives(ranks, family, frozen):
    """49 rows of the vocabulary over 2 or 3 processes, which have different numbers of tokens; one has none."""
    for answer in on_ranks(ranks, rank_heads.both_ways, family=family, frozen=frozen):
        tokens, weight = answer["tokens"], answer["weight"]
        assert tokens.keys() == weight.keys()
        assert ("lm_head.weight" in tokens) is not frozen
        assert any(abs(value).max() > 1e-3 for name, value in weight.items() if name.startswith("model.layers"))
        for name, expected in weight.items():
            assert tokens[name] == pytest.approx(expected, rel=1e-4, abs=2e-5), name


def test_fewer_bytes_travel():
    for answer in on_ranks(2, rank_heads.cost, rounds=1):
        shard = 4 * 32768 * 128 / 2  # handed to the gather; and the whole gradient to the reduction
        assert answer["weight"]["bytes"] - answer["tokens"]["bytes"] > 0.95 * 3 * shard


def test_a_rank_that_does_not_fit_is_named_on_every_rank():
    said = on_ranks(2, rank_heads.misfit)
    assert all("16" in line and "15" in line for line in said), said


def test_tokens_are_gathered_where_they_are_fewer_than_the_rows_of_a_shard():
    assert tokens_are_fewer(18991, 8, 151936)
    assert not tokens_are_fewer(18992, 8, 151936)
