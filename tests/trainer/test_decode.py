"""The decoding loop: slots that are filled again give every prompt what it gets alone."""

from __future__ import annotations

import pytest
import torch

from trainer.sampling.decode import decode, stream

PROMPTS = [[7, 8, 9], [12, 13, 14, 15, 16], [20], [7, 8, 9], [30, 31], [40, 41, 42, 43], [22, 23], [9], [33, 34, 35]]
LIMIT = 12
ENDS = [1, 11, 18, 25, 32, 39, 46]


class Drawn:
    """Draws by numbers of the prompt's own, and remembers the logits that each prompt saw."""

    def __init__(self) -> None:
        self.prompt_of: dict[int, int] = {}
        self.logits: dict[int, list[torch.Tensor]] = {}
        self.rows: list[int] = []

    def begin(self, slot: int, number: int) -> None:
        self.prompt_of[slot] = number
        self.logits[number] = []

    def __call__(self, logits, slots, steps):
        self.rows.append(len(slots))
        chosen = []
        for row, slot, step in zip(logits, slots.tolist(), steps.tolist(), strict=True):
            number = self.prompt_of[slot]
            if len(self.logits[number]) == step:  # else: ended, its row not dropped yet
                self.logits[number].append(row.clone())
            generator = torch.Generator().manual_seed(1000 * number + step)
            chosen.append(int(torch.multinomial(row.softmax(-1), 1, generator=generator)))
        return torch.tensor(chosen)


def streamed(model, slots: int, prompts=PROMPTS):
    drawn = Drawn()
    found = list(
        stream(
            model,
            prompts,
            drawn,
            slots=slots,
            max_new_tokens=LIMIT,
            end_ids=ENDS,
            pad_id=0,
            on_begin=drawn.begin,
        )
    )
    return found, drawn


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2"])
@pytest.mark.parametrize("slots", [1, 2, 4, 9, 20])
def test_a_prompt_gets_the_same_whoever_is_beside_it(load_model, family, slots):
    model = load_model(family).eval()
    found, drawn = streamed(model, slots)
    assert sorted(number for number, _, _ in found) == list(range(len(PROMPTS)))
    lengths = {len(completion.token_ids) for _, _, completion in found}
    assert len(lengths) > 3  # of unequal lengths, so slots become free at different times
    for number, _, completion in found:
        alone = Drawn()
        alone.begin(0, number)
        (expected,) = decode(model, [PROMPTS[number]], alone, max_new_tokens=LIMIT, end_ids=ENDS, pad_id=0)
        assert completion == expected
        for step, logits in enumerate(alone.logits[number]):
            torch.testing.assert_close(drawn.logits[number][step], logits, rtol=1e-4, atol=1e-5)


def test_a_long_completion_holds_nobody_up(load_model):
    model = load_model("qwen3").eval()
    long, short = 0, 1
    prompts = [[7, 8, 9]] + [[12, 13]] * 8

    class OneIsLong(Drawn):
        def __call__(self, logits, slots, steps):
            self.rows.append(len(slots))
            return torch.tensor([20 if self.prompt_of[slot] == long else ENDS[0] for slot in slots.tolist()])

    drawn = OneIsLong()
    options = {"max_new_tokens": LIMIT, "end_ids": ENDS, "pad_id": 0, "on_begin": drawn.begin}
    order = [number for number, _, _ in stream(model, prompts, drawn, slots=3, **options)]
    assert order[-1] == long  # the others did not wait for it
    assert sorted(order) == list(range(len(prompts)))
    assert drawn.rows[:4] == [3, 3, 3, 3]  # both free slots are filled again after every step
    assert len(drawn.rows) == LIMIT  # and by the time it ends all others have had their turn
    assert short in order


@pytest.mark.parametrize("ended_before", [0, 1], ids=["cut off at the limit", "ended a token before it"])
def test_no_token_beyond_the_limit_is_asked_of_a_row_that_has_ended_and_is_not_dropped(load_model, ended_before):
    """Five of six rows end at once and others begin in their slots: the sixth ends long before it is dropped."""
    model = load_model("qwen3").eval()
    prompts = [[7, 8, 9], *[[12, 13]] * 10]
    steps_seen = []

    class FiveEnd(Drawn):
        def __call__(self, logits, slots, steps):
            steps_seen.extend(steps.tolist())
            chosen = []
            for slot, step in zip(slots.tolist(), steps.tolist(), strict=True):
                number = self.prompt_of[slot]
                end = LIMIT - 1 - ended_before if number == 0 else 2 if number <= 5 else LIMIT - 1
                chosen.append(ENDS[0] if step == end and (number or ended_before) else 20)
            return torch.tensor(chosen)

    drawn = FiveEnd()
    options = {"max_new_tokens": LIMIT, "end_ids": ENDS, "pad_id": 0, "on_begin": drawn.begin}
    found = list(stream(model, prompts, drawn, slots=6, **options))
    assert max(steps_seen) == LIMIT - 1
    lengths = {number: len(completion.token_ids) for number, _, completion in found}
    assert lengths == {0: LIMIT - ended_before, **dict.fromkeys(range(1, 6), 3), **dict.fromkeys(range(6, 11), LIMIT)}


def test_columns_that_nobody_needs_are_cut_off(load_model):
    model = load_model("qwen3").eval()
    widths = []

    class Watched(Drawn):
        def __call__(self, logits, slots, steps):
            return torch.full((len(slots),), ENDS[0])

    def watch(module, args, kwargs):
        widths.append(kwargs["attention_mask"].shape[1])

    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    drawn = Watched()
    try:
        list(
            stream(
                model,
                [[7, 8, 9]] * 40,
                drawn,
                slots=4,
                max_new_tokens=LIMIT,
                end_ids=ENDS,
                pad_id=0,
                on_begin=drawn.begin,
            )
        )
    finally:
        handle.remove()
    assert max(widths) <= 3 + LIMIT


def test_steps_tell_how_many_are_under_way_and_no_prompt_needs_no_step(load_model):
    model = load_model("qwen3").eval()
    drawn, told = Drawn(), []
    options = {"max_new_tokens": LIMIT, "end_ids": ENDS, "pad_id": 0, "on_begin": drawn.begin, "on_step": told.append}
    found = list(stream(model, PROMPTS, drawn, slots=4, **options))
    assert sum(told) + len(found) == sum(len(completion.token_ids) for _, _, completion in found)
    assert told[-1] == 0
    assert list(stream(model, [], drawn, slots=4, **options)) == []
