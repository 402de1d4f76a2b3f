"""The embedded experiment's parts: problems, tokenizers, model, sampler, warm start, evaluation, table."""

import random
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.experiment import result_table, warm_start
from trainer.experiment.held_out import evaluate
from trainer.experiment.warm_start import WarmStartSettings
from trainer.sampling import rollout
from trainer.sampling.rollout import sample
from trainer.tiny import problems as word_problems
from trainer.tiny.model import build_model
from trainer.tiny.problems import DESIGNS, draw_problems, draw_response
from trainer.tiny.tokenizer import byte_tokenizer, load_tokenizer, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """Untrained, with larger weights, so that its distributions are not all alike."""
    made = build_model(tokenizer, seed=5)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return made.eval()


def prompts_of(tokenizer, count: int) -> list[list[int]]:
    """Prompts of different lengths."""
    made = [[{"role": "user", "content": p.question}] for p in draw_problems(count, seed=2, held_out=False)]
    for index, messages in enumerate(made):
        messages[0]["content"] = " ".join(messages[0]["content"].split()[index:])
    return tokenizer.apply_chat_template(made, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]


# --- problems


@pytest.mark.parametrize("design", DESIGNS)
def test_every_equation_and_conclusion_of_a_response_follows_its_design(design, tokenizer):
    rng = random.Random(0)
    right = wrong = 0
    for problem in draw_problems(300, seed=0, held_out=False):
        response = draw_response(rng, problem, design)
        reasoning = response.split("to recap")[0]
        conclusions = [int(found) for found in re.findall(r"that gives (\d+)", reasoning)]
        boxed = int(re.search(r"\\boxed\{ (\d+) \}$", response)[1])
        assert boxed in conclusions
        if design in ("slips", "recap"):
            right, wrong = right + (boxed == problem.answer), wrong + (boxed != problem.answer)
            agreeing = [c for i, c in enumerate(conclusions) if c in conclusions[:i]]
            assert len(conclusions) >= 2
            assert not agreeing or agreeing[0] == boxed or len(conclusions) > word_problems.MOST_CALCULATIONS
        else:
            assert {boxed, *conclusions} == {problem.answer}
            for left, sign, by, result in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", response):
                assert int(left) + int(by) * (1 if sign == "+" else -1) == int(result)
        ids = tokenizer(response)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == response
        assert (word_problems.count_recaps(response) == 0) or DESIGNS[design].recaps
    if design in ("slips", "recap"):
        assert 0.03 < wrong / (right + wrong) < 0.25  # exploring catches most slips, not all


def test_number_of_explorations_is_uniform_from_0_to_4():
    rng = random.Random(1)
    (problem,) = draw_problems(1, seed=0, held_out=False)
    counts = [word_problems.count_explorations(draw_response(rng, problem, "explore")) for _ in range(2000)]
    for k in range(5):
        assert counts.count(k) == pytest.approx(400, abs=5 * 18)  # 5 standard deviations
    assert set(counts) == set(range(5))


def test_no_held_out_sum_is_ever_trained_on():
    trained = {(p.a, p.b, p.c) for p in draw_problems(4000, seed=0, held_out=False)}
    held_out = {(p.a, p.b, p.c) for p in draw_problems(400, seed=0, held_out=True)}
    assert not trained & held_out
    assert len(held_out) / len(trained | held_out) == pytest.approx(1 / 8, abs=0.04)


def test_problems_are_the_same_for_the_same_seed_only():
    first = draw_problems(50, seed=3, held_out=True)
    assert first == draw_problems(50, seed=3, held_out=True)
    assert first != draw_problems(50, seed=4, held_out=True)
    assert len(set(first)) == 50


# --- tokenizers and model


def test_vocabulary_is_one_token_per_word_and_number(tokenizer):
    assert 120 <= len(tokenizer) <= 130
    assert all(len(tokenizer(str(n))["input_ids"]) == 1 for n in range(25))


def test_reloaded_tokenizer_still_pads_on_the_left(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    reloaded = load_tokenizer(tmp_path)
    batch = reloaded(["tom has", "tom"], padding=True)["input_ids"]
    assert batch[1][0] == reloaded.pad_token_id
    assert batch[1][1] == batch[0][0]
    message = [{"role": "user", "content": "tom has"}]
    text = reloaded.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|> tom has <|end|> <|assistant|>"


@settings(deadline=None, max_examples=100)
@given(st.text().filter(lambda text: "<|" not in text))
def test_byte_tokenizer_gives_back_any_text(text):
    tokenizer = _bytes()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())


def _bytes(made=[]):  # noqa: B006
    if not made:
        made.append(byte_tokenizer())
    return made[0]


def test_model_has_the_embedded_size_and_depends_on_the_seed_alone(tokenizer):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = build_model(tokenizer, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    torch.testing.assert_close(one.state_dict(), build_model(tokenizer, seed=7).state_dict(), rtol=0, atol=0)
    assert not torch.equal(one.lm_head.weight, build_model(tokenizer, seed=8).lm_head.weight)
    assert 75_000 < sum(p.numel() for p in one.parameters()) < 110_000
    assert one.lm_head.weight is one.model.embed_tokens.weight


# --- sampler


def test_sampling_at_temperature_zero_is_greedy_generation_of_transformers(tokenizer, model):
    """Padding, positions, prompts read once and dropped rows: any error in them shows in the tokens."""
    prompts = prompts_of(tokenizer, 5)
    prompts = [prompts[i] for i in (0, 1, 1, 2, 3, 4, 0)]
    # the most frequent greedy token ends some rows early
    free = [
        model.generate(torch.tensor([p]), do_sample=False, max_new_tokens=24)[0, len(p) :].tolist() for p in prompts
    ]
    end = free[0][3]
    expected = [row[: row.index(end) + 1] if end in row else row for row in free]
    lengths = {len(row) for row in expected}
    assert len(lengths) > 1, "the case must have rows that end at different steps"
    actual = rollout.sample(
        model, prompts, max_new_tokens=24, temperature=1e-6, end_ids=[end], pad_id=tokenizer.pad_token_id
    )
    assert [one.token_ids for one in actual] == expected


def test_sampled_tokens_have_the_models_distribution(tokenizer, model):
    (prompt,) = prompts_of(tokenizer, 1)
    n, temperature = 20_000, 1.7
    torch.manual_seed(0)
    drawn = rollout.sample(
        model, [prompt] * n, max_new_tokens=1, temperature=temperature, end_ids=[0], pad_id=tokenizer.pad_token_id
    )
    counts = torch.bincount(torch.tensor([one.token_ids[0] for one in drawn]), minlength=len(tokenizer)).double()
    with torch.no_grad():
        p = (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
    keep = n * p > 5
    chi_square = ((counts - n * p)[keep] ** 2 / (n * p)[keep]).sum().item()
    degrees = int(keep.sum()) - 1
    assert degrees >= 3
    assert chi_square < degrees + 6 * (2 * degrees) ** 0.5


def test_sampler_draws_from_the_generator_that_checkpoints_save(tokenizer, model):
    prompts = prompts_of(tokenizer, 3)
    arguments = {"max_new_tokens": 12, "temperature": 1.0, "end_ids": [tokenizer.eos_token_id], "pad_id": 0}
    torch.manual_seed(4)
    first = rollout.sample(model, prompts, **arguments)
    torch.manual_seed(4)
    assert rollout.sample(model, prompts, **arguments) == first
    assert rollout.sample(model, prompts, **arguments) != first
    assert all(1 <= len(one.token_ids) <= 12 for one in first)


@pytest.mark.parametrize("option", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.2}])
def test_rollout_refuses_sampling_options_it_does_not_have(option):
    args = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, **option}
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.*--sampler trl"):
        rollout.rollout([], SimpleNamespace(args=SimpleNamespace(**args)))


# --- warm start


def test_warm_start_learns_is_cached_and_found_again(tmp_path, monkeypatch):
    settings_ = WarmStartSettings(steps=12, batch_size=8)
    path = warm_start.warm_start(settings_, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # no staging directory is left
    model, tokenizer = warm_start.load(path)
    assert model.config._name_or_path == str(path)  # TRL reloads the reference from there
    monkeypatch.setattr(warm_start, "train", lambda settings: pytest.fail("trained again"))
    assert warm_start.warm_start(settings_, tmp_path) == path
    rng = random.Random(0)
    ids, targets = next(warm_start._batches(tokenizer, rng, WarmStartSettings(batch_size=16)))
    with torch.no_grad():
        trained = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
        fresh = build_model(tokenizer, seed=0)
        untrained = torch.nn.functional.cross_entropy(fresh(ids).logits.flatten(0, 1), targets.flatten())
    assert trained < untrained - 1.0


def test_warm_start_depends_on_every_setting_and_on_its_sources(monkeypatch, tmp_path):
    base = WarmStartSettings()
    keys = {warm_start.cache_key(base)}
    others = (
        {"design": "recap"},
        {"steps": 599},
        {"batch_size": 31},
        {"muon_learning_rate": 0.01},
        {"adamw_learning_rate": 1e-3},
        {"seed": 1},
    )
    keys |= {warm_start.cache_key(WarmStartSettings(**other)) for other in others}
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.add(warm_start.cache_key(base))
    assert len(keys) == len(others) + 2


def test_warm_start_in_an_unfinished_directory_of_that_name_is_made_anew(tmp_path):
    settings_ = WarmStartSettings(steps=1, batch_size=2)
    broken = tmp_path / warm_start.cache_key(settings_)
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    path = warm_start.warm_start(settings_, tmp_path)
    assert path == broken
    warm_start.load(path)


def test_cache_directory_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert warm_start.default_cache_dir() == tmp_path / "cer_ext"


def test_targets_are_the_response_and_its_end_and_nothing_else(tokenizer):
    batches = warm_start._batches(tokenizer, random.Random(0), WarmStartSettings(batch_size=4))
    for _ in range(9):
        ids, targets = next(batches)
        for row in range(4):
            wanted = targets[row][targets[row] != -100]
            text = tokenizer.decode(wanted)
            assert text.startswith("<think>")
            assert text.endswith("} <|end|>")
            where = (targets[row] != -100).nonzero()[:, 0]
            assert torch.equal(ids[row, where + 1], wanted)
            assert tokenizer.decode(ids[row, where[0]]) == "<|assistant|>"


@pytest.mark.parametrize("bad", [{"design": "none"}, {"steps": 0}, {"batch_size": 0}])
def test_bad_warm_start_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        WarmStartSettings(**bad)


# --- evaluation and table


def test_entropies_of_samples_are_those_of_the_model_at_their_tokens(tokenizer, model):
    prompts = prompts_of(tokenizer, 3)
    limits = {"max_new_tokens": 12, "end_ids": [tokenizer.eos_token_id], "pad_id": tokenizer.pad_token_id}
    samples = sample(model, prompts, temperature=0.7, **limits)
    for prompt, one in zip(prompts, samples, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + one.token_ids])).logits[0].double() / 0.7
        logp = logits.log_softmax(-1)
        expected = -(logp.exp() * logp).sum(-1)[len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.tensor(one.decoded.entropies).double(), expected, rtol=1e-4, atol=1e-6)


def test_evaluation_leaves_the_random_state_and_the_mode_alone(tokenizer, model):
    problems = draw_problems(5, seed=0, held_out=True)
    state = torch.random.get_rng_state()
    model.train()
    first = evaluate(model, tokenizer, problems, max_new_tokens=8, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    model.eval()
    assert evaluate(model, tokenizer, problems, max_new_tokens=8, seed=1) == first
    for teca, total, tokens in zip(first.teca, first.entropy_sum, first.tokens, strict=True):
        assert teca * tokens == pytest.approx(total, rel=1e-4)


def test_table_says_what_accuracy_alone_and_a_length_penalty_do(tokenizer, model):
    problems = draw_problems(4, seed=0, held_out=True)
    row = result_table.summarise(evaluate(model, tokenizer, problems, max_new_tokens=6, seed=0))
    shorter = {**row, "length": row["length"] / 2}
    rows = {result_table.BEFORE: row, "cer": shorter}
    assert "No control was run" in result_table.result_table(rows, design="explore")
    longer = {**row, "length": row["length"] * 1.25}
    rows |= {"accuracy": row, "length_penalty": longer}
    table = result_table.result_table(rows, design="explore")
    assert "accuracy alone +0%, a plain length penalty +25%" in table
    assert re.search(r"\| CER.*-50%", table)
    assert re.search(r"accuracy only.*\+0%", table)
    assert "recaps" not in table
    recap = result_table.result_table(rows, design="recap")
    assert "recaps" in recap
    assert "counter-example" in recap
