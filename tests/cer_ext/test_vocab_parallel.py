"""A head whose vocabulary is spread over 1 to 4 processes gives what one process gives, or one error everywhere."""

import pytest
import torch
from exact import assert_relative
from rank_programs import OPTIONS, changed, even, problem, sizes, step
from ranks import Raised, Ranks

from cer_ext import linear_logprobs_and_entropy, linear_token_loss

V = 301
CUTS = {
    1: [[0, V]],
    2: [even(V, 2), [0, 7, V], [0, V, V]],
    3: [even(V, 3), [0, 0, 200, V]],
    4: [even(V, 4), [0, 1, 1, 300, V]],
}
LAYOUTS = [(ranks, cuts) for ranks, all_cuts in CUTS.items() for cuts in all_cuts]


@pytest.fixture(scope="module")
def ranks():
    processes = Ranks()
    yield processes
    processes.stop()


def whole(answers: list[dict], split_tokens: bool) -> dict[str, torch.Tensor]:
    """One answer of all ranks': shards of the weight joined; tokens too where they are split, else the same bits."""
    joined = {}
    for name in answers[0]:
        parts = [answer[name] for answer in answers]
        if name in ("grad_weight", "grad_bias"):
            joined[name] = torch.cat(parts)
        elif name == "loss" and split_tokens:
            joined[name] = torch.stack(parts).sum()
        elif split_tokens:
            joined[name] = torch.cat(parts)
        else:
            assert all(torch.equal(part, parts[0]) or part.isnan().any() for part in parts), f"{name}: ranks differ"
            joined[name] = parts[0]
    return joined


# float32 values of forward and loss to the contract's 1e-5; gradients are sums in another order.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2e-6}


def compare(ours: dict, right: dict, dtype: torch.dtype = torch.float32) -> None:
    assert ours.keys() == right.keys()
    for name, expected in right.items():
        tolerance = TOLERANCE[dtype]
        if dtype == torch.bfloat16 and name in ("grad_hidden", "grad_weight", "grad_bias"):
            tolerance = 2.0**-7  # a sum that is rounded the other way
        assert ours[name].dtype == expected.dtype
        largest = float(expected.abs().nan_to_num(0.0, 0.0).max())
        assert_relative(ours[name], expected, tolerance, name, atol=tolerance * largest)


@pytest.mark.parametrize("one_pass", [False, True], ids=["two passes", "one pass"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("size", "cuts"), LAYOUTS, ids=lambda x: str(sizes(x)) if isinstance(x, list) else str(x))
def test_the_vocabulary_over_ranks_gives_what_one_process_gives(ranks, size, cuts, options, one_pass):
    answers = ranks.run("shard_step", size, cuts=cuts, options=options, one_pass=one_pass)
    compare(whole(answers, False), step(problem(), OPTIONS[options], one_pass=one_pass))


@pytest.mark.parametrize("one_pass", [False, True], ids=["two passes", "one pass"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("size", "cuts"),
    [layout for layout in LAYOUTS if layout[0] in (2, 3, 4)],
    ids=lambda x: str(sizes(x)) if isinstance(x, list) else str(x),
)
def test_tokens_over_ranks_too_give_what_one_process_gives_for_all_of_them(ranks, size, cuts, options, one_pass):
    answers = ranks.run("shard_step", size, cuts=cuts, options=options, one_pass=one_pass, split_tokens=True)
    compare(whole(answers, True), step(problem(), OPTIONS[options], one_pass=one_pass))


@pytest.mark.parametrize("split_tokens", [False, True], ids=["all tokens", "own tokens"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(ranks, dtype, split_tokens):
    for one_pass in (False, True):
        answers = ranks.run(
            "shard_step", 3, cuts=[0, 100, 100, V], dtype=dtype, one_pass=one_pass, split_tokens=split_tokens
        )
        compare(whole(answers, split_tokens), step(problem(dtype), {}, one_pass=one_pass), dtype)


@pytest.mark.parametrize("split_tokens", [False, True], ids=["all tokens", "own tokens"])
def test_a_frozen_weight_and_lse(ranks, split_tokens):
    arguments = {"one_pass": False, "trained": False, "lse": True}
    answers = ranks.run("shard_step", 2, cuts=[0, 40, V], split_tokens=split_tokens, **arguments)
    compare(whole(answers, split_tokens), step(problem(), {}, **arguments))


@pytest.mark.parametrize("one_pass", [False, True], ids=["two passes", "one pass"])
def test_rows_without_a_distribution_and_logits_of_minus_infinity(ranks, one_pass):
    """A NaN row is NaN on every rank and poisons no other; a token of probability zero counts for nothing."""
    change = {"hidden": (4, torch.nan), "bias": (slice(100, 180), -torch.inf), "advantages": (4, 0.0)}
    change["target"] = (5, 7)  # its bias is finite
    options = "temperature per row, bias"
    answers = ranks.run("shard_step", 3, cuts=[0, 110, 170, V], options=options, one_pass=one_pass, change=change)
    right = step(changed(problem(), change), OPTIONS[options], one_pass=one_pass)
    assert right["entropy"][4].isnan()
    assert right["entropy"][[0, 2, 3]].isfinite().all()
    right.pop("loss"), [answer.pop("loss") for answer in answers]  # 0 times NaN
    compare(whole(answers, False), right)


@pytest.mark.parametrize("split_tokens", [False, True], ids=["all tokens", "own tokens"])
@pytest.mark.parametrize("one_pass", [False, True], ids=["two passes", "one pass"])
def test_every_run_gives_the_same_bits(ranks, one_pass, split_tokens):
    assert all(ranks.run("twice", 4, cuts=even(V, 4), one_pass=one_pass, split_tokens=split_tokens))


@pytest.mark.parametrize("split_tokens", [False, True], ids=["all tokens", "own tokens"])
def test_it_compiles_to_one_graph_with_the_same_bits(ranks, split_tokens):
    assert ranks.run("compiled", 3, cuts=[0, 150, 150, V], split_tokens=split_tokens) == [True] * 3


@pytest.mark.parametrize("one_pass", [False, True], ids=["two passes", "one pass"])
def test_a_dtensor_cut_along_the_vocabulary_is_a_weight(ranks, one_pass):
    answers = ranks.run("sharded_parameter", 3, one_pass=one_pass)
    right = step(problem(), {}, one_pass=one_pass)
    for answer in answers:
        for name, value in answer.items():
            scale = 1 / 1.5 if name.startswith("grad") else 1.0
            expected = right[name] * scale
            assert_relative(value, expected, 2e-6, name, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("case", "kind", "said"),
    [
        ("no group", "TypeError", r"weight: got a DTensor .*pass group="),
        ("whole", "ValueError", r"weight: expected a DTensor that is cut along dimension 0"),
        ("other dimension", "ValueError", r"weight: expected a DTensor that is cut along dimension 0 once"),
    ],
)
def test_another_dtensor_is_refused(ranks, case, kind, said):
    for answer in ranks.run("wrong_dtensor", 2, case=case):
        assert isinstance(answer, Raised)
        assert kind in (answer.kind, "TypeError")
        assert said.split(".*")[0].replace("\\", "") in answer.message


# ------------------------------------------------------------------------------------------------------------- traffic

N, D, KEPT, ALIVE = 24, 16, 21, 13  # tokens, width, tokens that are not ignored, those with a gradient


def test_a_pass_is_one_gather_of_forty_bytes_a_token_and_one_sum_of_grad_hidden(ranks):
    for seen in ranks.run("traffic", 3, cuts=even(V, 3), one_pass=False, split_tokens=False, validate=False):
        assert seen.forward == [("all_gather_into_tensor", 40 * KEPT)]
        assert seen.backward == [("all_reduce", 4 * D * ALIVE)]


def test_validation_adds_one_exchange_of_a_few_integers(ranks):
    for seen in ranks.run("traffic", 3, cuts=even(V, 3), one_pass=False, split_tokens=False, validate=True):
        assert seen.forward == [("all_gather_into_tensor", 14 * 8), ("all_gather_into_tensor", 40 * KEPT)]
        assert seen.backward == [("all_reduce", 4 * D * ALIVE)]


def test_one_pass_merges_states_once_for_every_row_tile_and_sums_once(ranks):
    for seen in ranks.run("traffic", 2, cuts=even(V, 2), one_pass=True, split_tokens=False, validate=False):
        assert seen.forward == [("all_gather_into_tensor", 40 * KEPT), ("all_reduce", 4 * D * KEPT)]
        assert seen.backward == []


def test_with_own_tokens_hidden_states_travel_and_the_weight_does_not(ranks):
    own = N // 2
    hidden, target, states = 4 * D * own, 8 * own, 40 * KEPT
    gathers = [("all_gather_into_tensor", size) for size in (hidden, target, states)]
    for seen in ranks.run("traffic", 2, cuts=even(V, 2), one_pass=False, split_tokens=True, validate=False):
        assert seen.forward == gathers
        assert seen.backward == [
            *gathers[:2],
            ("all_gather_into_tensor", 3 * 4 * own),
            ("reduce_scatter_tensor", 4 * D * N),
        ]
    for seen in ranks.run("traffic", 2, cuts=even(V, 2), one_pass=True, split_tokens=True, validate=False):
        assert seen.forward == [
            *gathers[:2],
            ("all_gather_into_tensor", 40 * N),
            ("all_gather_into_tensor", 3 * 4 * own),
            ("reduce_scatter_tensor", 4 * D * N),
        ]
        assert seen.backward == []


# -------------------------------------------------------------------------------------------------------------- errors

MISTAKES = {
    "rows missing": "weight: expected shards that add up to 301 rows over the group, got 100 + 99 + 101 = 300",
    "another vocabulary": "vocabulary: expected one on every rank",
    "fewer tokens": "hidden: expected as many tokens on every rank of the group, got 24, 23, 24 in rank order",
    "tokens of its own, fewer": "hidden: expected as many tokens on every rank of the group, got 8, 7, 8 in rank order",
    "another width": "hidden: expected one width D on every rank of the group, got 16, 15, 16",
    "another dtype": "hidden: expected one dtype on every rank",
    "other targets": "target: expected the same tokens on every rank",
    "another temperature": "temperature: expected one on every rank of the group, got 1.0, 0.9, 1.0",
    "a wrong argument": "softcap: expected None or a positive finite number, got -1.0",
    "a wrong shape": "weight: expected shape (V, D) with V >= 0 and D = 16",
    "no rows at all": "weight: expected at least one row in all shards of the group, got 0 + 0 + 0 = 0",
    "target out of range": "target: expected 0 <= target < 301 or ignore_index=-100, got 301",
    "target out of range, split": "target: expected 0 <= target < 301 or ignore_index=-100, got 301",
    "no room": "workspace_bytes: expected at least",
    "another cut, unvalidated": "as torch.chunk and DTensor cut 301",
}


@pytest.mark.parametrize("one_pass", [False, True], ids=["two passes", "one pass"])
@pytest.mark.parametrize("case", MISTAKES)
def test_calls_that_do_not_fit_together_raise_on_every_rank_and_none_waits(ranks, case, one_pass):
    for rank, answer in enumerate(ranks.run("mistake", 3, case=case, one_pass=one_pass)):
        assert isinstance(answer, Raised), f"rank {rank} went on"
        assert answer.kind == "ValueError"
        assert MISTAKES[case] in answer.message
        if case.startswith("a wrong") and rank != 1:
            assert answer.message.startswith("rank 1 of the group: ValueError: ")


def test_ranks_work_on_after_an_error(ranks):
    ranks.run("mistake", 3, case="other targets", one_pass=False)
    answers = ranks.run("shard_step", 3, cuts=even(V, 3), one_pass=False)
    compare(whole(answers, False), step(problem(), {}, one_pass=False))


def test_own_losses_scaled_differently_are_refused_in_one_pass(ranks):
    for answer in ranks.run("other_upstream", 2):
        assert isinstance(answer, Raised)
        assert "expected the same gradient of the loss on every rank, got 1.0, 2.0" in answer.message


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"group": "world"}, TypeError, "group: expected None, a ProcessGroup or a DeviceMesh, got str"),
        ({"split_tokens": True}, ValueError, "split_tokens: expected a group"),
        ({"vocabulary": 5}, ValueError, "vocabulary: belongs to a head that is spread over the ranks of a group"),
        ({"split_tokens": 1}, TypeError, "split_tokens: expected True or False"),
    ],
)
def test_arguments_without_a_group_are_refused(options, kind, said):
    hidden, weight, target = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(kind, match=said):
        linear_logprobs_and_entropy(hidden, weight, target, **options)
    with pytest.raises(kind, match=said):
        linear_token_loss(hidden, weight, target, lambda lp, h, rows: lp.sum(), **options)
