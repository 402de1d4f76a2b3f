"""CERTrainer beside stock TRL: the same run, number for number; and the TECA that the reward functions receive."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from same_run import assert_same_run, compare, run, token_statistics_in_float64
from tiny_models import ENDS, VOCABULARY, count_reward, make_model, prompts
from transformers import Llama4ForCausalLM, Llama4TextConfig
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from trainer.cer_trainer import CERTrainer
from trainer.sampling.early_exit import EarlyExit
from trainer.sampling.teca_requests import Decoded


def new_lora():
    return {"peft_config": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])}


# aligned: TRL makes no pass for old_per_token_logps. misaligned: it does, and reuses samples after an update.
STEPS = {
    "aligned": {"gradient_accumulation_steps": 2, "steps_per_generation": 2},
    "misaligned": {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "max_steps": 4},
}


@pytest.mark.parametrize("beta", [0.0, 0.1], ids=["beta 0", "beta 0.1"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_run_equals_stock_trl(load_model, tokenizer, config, tuning, steps, beta):
    trainer = compare(
        load_model,
        tokenizer,
        lambda: config(optim="sgd", learning_rate=0.1, beta=beta, **STEPS[steps]),
        options=new_lora if tuning == "lora" else dict,
    )
    history = trainer.state.log_history[:-1]
    assert all(entry["grad_norm"] > 1e-3 for entry in history)
    assert ("kl" in history[0]) == (beta > 0)
    assert beta == 0 or history[-1]["kl"] > 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "phi", "qwen3_moe"])
def test_run_of_every_kind_of_head_equals_stock_trl(load_model, tokenizer, config, family):
    compare(
        load_model,
        tokenizer,
        lambda: config(optim="sgd", learning_rate=0.05, beta=0.05, max_steps=2, entropy_coef=0.01),
        family=family,
    )


def test_a_mixture_of_experts_without_a_router_loss_is_trained_without_one(tokenizer, config):
    """Llama4's configuration has a coefficient for it, its forward has no such loss."""
    torch.manual_seed(0)
    model = Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            intermediate_size_mlp=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_local_experts=4,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            router_aux_loss_coef=0.1,
        )
    )
    trainer, _ = run(CERTrainer, model, tokenizer, config(max_steps=1, learning_rate=0.1))
    assert "aux_loss" not in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_a_continued_adapter_equals_stock_trl(load_model, tokenizer, config):
    """TRL keeps a copy of the adapter as the reference, named "ref"."""

    def wrap(model):
        torch.manual_seed(2)
        model = get_peft_model(model, new_lora()["peft_config"])
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2)
        return model

    for steps in STEPS.values():
        trainer = compare(
            load_model, tokenizer, lambda s=steps: config(optim="sgd", learning_rate=0.1, beta=0.1, **s), wrap=wrap
        )
        assert "ref" in trainer.model.peft_config
        assert trainer.state.log_history[-2]["kl"] > 1e-5


def test_the_extra_pass_draws_no_random_number_under_dropout(load_model, tokenizer, config):
    """LoRA dropout is on while TRL trains; with an extra pass that drew one number, the losses would part."""
    compare(
        load_model,
        tokenizer,
        lambda: config(optim="sgd", learning_rate=0.1, beta=0.1),
        options=lambda: {"peft_config": LoraConfig(r=4, lora_dropout=0.4, target_modules=["q_proj", "up_proj"])},
    )


def test_lora_on_the_head_which_stock_trl_refuses_trains_the_head(load_model, tokenizer, config):
    def options():
        return {"peft_config": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"])}

    with pytest.raises(ValueError, match="lm_head"):
        run(GRPOTrainer, load_model("llama"), tokenizer, config(beta=0.1), **options())
    trainer, _ = run(CERTrainer, load_model("llama"), tokenizer, config(beta=0.1), **options())
    trained = dict(trainer.model.named_parameters())
    assert trained["base_model.model.lm_head.lora_B.default.weight"].abs().max() > 1e-3
    assert torch.equal(trained["base_model.model.lm_head.base_layer.weight"], load_model("llama").lm_head.weight)
    assert trainer.state.log_history[-2]["kl"] > 1e-5
    # TRL's own names are back in place.
    assert grpo_trainer.add_fused_lm_head.__module__ == "trl.trainer.utils"
    assert grpo_trainer.BaseTunerLayer.__module__.startswith("peft.")


class Inspector:
    """A reward function that holds the TECA it is given against float64 every time it is called."""

    __name__ = "inspector"

    def __init__(self, tokenizer, temperature=0.9, written=None):
        self.tokenizer, self.temperature, self.written = tokenizer, temperature, written
        self.calls, self.trainer, self.modes = 0, None, set()

    def __call__(self, prompts, completion_ids, teca, entropy_sum, **kwargs):
        prompt_ids = [
            self.tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
            if isinstance(p, list)
            else self.tokenizer(p)["input_ids"]
            for p in prompts
        ]
        _, expected = token_statistics_in_float64(self.trainer.model, prompt_ids, completion_ids, self.temperature)
        if self.written is not None:
            expected = [h[torch.tensor(m, dtype=torch.bool)] for h, m in zip(expected, self.written, strict=True)]
        assert all(isinstance(value, float) for value in teca + entropy_sum)
        assert teca == pytest.approx([h.mean().item() for h in expected], rel=1e-5, nan_ok=True)
        assert entropy_sum == pytest.approx(
            [h.sum().item() if len(h) else math.nan for h in expected], rel=1e-5, nan_ok=True
        )
        self.calls += 1
        self.modes.add(self.trainer.model.training)
        return [
            math.exp(-t) + 0.1 * len(ids) if math.isfinite(t) else None
            for t, ids in zip(teca, completion_ids, strict=True)
        ]


TECA_CASES = {
    "extra pass": {**STEPS["aligned"]},
    "old pass": {**STEPS["misaligned"]},
    "iterations": {"num_iterations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 1},
    "truncated completions masked, extra pass": {**STEPS["aligned"], "mask_truncated_completions": True},
    "truncated completions masked, old pass": {**STEPS["misaligned"], "mask_truncated_completions": True},
    "padded to a multiple": {**STEPS["misaligned"], "pad_to_multiple_of": 8},
    "evaluation": {**STEPS["aligned"], "eval_strategy": "steps", "eval_steps": 1},
    "evaluation, old pass": {**STEPS["misaligned"], "eval_strategy": "steps", "eval_steps": 2},
    "hot": {**STEPS["aligned"], "temperature": 1.7},
    "top-k": {**STEPS["aligned"], "top_k": 5},  # TECA is the policy's own, not the truncated sampler's
}


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("case", TECA_CASES)
def test_teca_given_to_the_rewards_equals_float64_from_plain_logits(load_model, tokenizer, config, case, tuning):
    options = {"beta": 0.1, **TECA_CASES[case]}
    arguments = config(**options)
    inspector = Inspector(tokenizer, arguments.temperature)
    trainer = CERTrainer(
        load_model(),
        inspector,
        args=arguments,
        train_dataset=prompts(),
        eval_dataset=prompts(4, conversational=True),
        processing_class=tokenizer,
        **(new_lora() if tuning == "lora" else {}),
    )
    inspector.trainer = trainer
    trainer.train()
    assert inspector.calls >= 2
    assert inspector.modes == ({True, False} if "evaluation" in case else {True})
    logged = trainer.state.log_history
    assert all(math.isfinite(entry["teca"]) for entry in logged if "reward" in entry and "eval_loss" not in entry)
    if "evaluation" in case:
        assert any(entry.get("eval_teca", 0) > 0 and entry.get("eval_entropy_sum", 0) > 0 for entry in logged)


def test_tokens_the_policy_did_not_write_do_not_count(load_model, tokenizer, config):
    """A rollout function marks tool results by env_mask; a completion of tool results alone has no TECA."""
    generator = torch.Generator().manual_seed(0)
    written = []

    def rollout(shown, trainer):
        ids = {"prompt_ids": [tokenizer(p)["input_ids"] for p in shown], "logprobs": None, "env_mask": []}
        ids["completion_ids"] = [
            torch.randint(6, 49, (4 + i,), generator=generator).tolist() for i in range(len(shown))
        ]
        ids["env_mask"] = [[int((i + t) % 3 > 0) for t in range(4 + i)] for i in range(len(shown))]
        ids["env_mask"][1] = [0] * len(ids["env_mask"][1])
        written[:] = ids["env_mask"]
        return ids

    for steps in STEPS.values():
        inspector = Inspector(tokenizer, written=written)
        with pytest.warns(UserWarning, match="rollout_func"):
            trainer = CERTrainer(
                load_model(),
                inspector,
                args=config(**steps),
                train_dataset=prompts(),
                processing_class=tokenizer,
                rollout_func=rollout,
            )
        inspector.trainer = trainer
        trainer.train()
        assert inspector.calls >= 2


def spy_on_passes(monkeypatch):
    """Which model each scoring pass ran, with which adapter, with gradient or not, in which mode."""
    passes = []
    original = grpo_trainer.GRPOTrainer._get_per_token_logps_and_entropies

    def recorded(self, model, *args, **kwargs):
        if model is not self.model:
            who = "reference" if self.ref_model is not None and model is self.ref_model else "policy"
        elif hasattr(model, "peft_config") and not torch.is_grad_enabled():
            layer = model.base_model.model.model.layers[0].self_attn.q_proj
            who = "reference" if layer.disable_adapters or layer.active_adapters == ["ref"] else "policy"
        else:
            who = "policy"
        kind = "gradient" if torch.is_grad_enabled() else "training" if self.model.training else "evaluation"
        passes.append((who, kind, kwargs.get("compute_entropy", False)))
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(grpo_trainer.GRPOTrainer, "_get_per_token_logps_and_entropies", recorded)
    return passes


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_every_rollout_is_scored_once_and_never_by_the_reference(load_model, tokenizer, config, monkeypatch, tuning):
    passes = spy_on_passes(monkeypatch)
    options = {**(new_lora() if tuning == "lora" else {}), "teca_source": "scoring"}
    reference, step = ("reference", "training", False), ("policy", "gradient", True)

    run(CERTrainer, load_model(), tokenizer, config(beta=0.1, max_steps=1, **STEPS["aligned"]), **options)
    assert passes == [("policy", "evaluation", True), reference, step, step]
    passes.clear()
    run(CERTrainer, load_model(), tokenizer, config(beta=0.1, **{**STEPS["misaligned"], "max_steps": 2}), **options)
    assert passes == [("policy", "training", True), reference, step, step]


@pytest.mark.parametrize("source", ["auto", "rollout"])
def test_entropies_from_generate_need_no_pass_and_are_those_of_scoring(
    load_model, tokenizer, config, monkeypatch, source
):
    seen = {}
    for name in ("scoring", source):
        passes = spy_on_passes(monkeypatch)
        given = seen[name] = []

        def reward(teca, entropy_sum, completion_ids, given=given, **kwargs):
            given.extend(zip(teca, entropy_sum, completion_ids, strict=True))
            return [-value for value in teca]

        trainer = CERTrainer(
            load_model(),
            reward,
            args=config(max_steps=1),
            train_dataset=prompts(),
            processing_class=tokenizer,
            teca_source=name,
        )
        trainer.train()
        assert [kind for _, kind, _ in passes] == ["evaluation"] * (name == "scoring") + ["gradient"] * 2
        log = trainer.state.log_history[0]
        assert ("teca/rollout_difference" in log) == (name != "scoring")
    assert log["teca/rollout_difference_max"] < 1e-5
    assert [row[2] for row in seen[source]] == [row[2] for row in seen["scoring"]]
    for column in (0, 1):
        scored = [row[column] for row in seen["scoring"]]
        assert [row[column] for row in seen[source]] == pytest.approx(scored, abs=1e-4)


def test_entropies_of_another_distribution_than_the_policys_are_warned_of(load_model, tokenizer, config, caplog):
    """A repetition penalty acts before generate shows its scores: the entropy is not the policy's."""
    arguments = config(max_steps=1, repetition_penalty=1.3)
    trainer, _ = run(CERTrainer, load_model(), tokenizer, arguments)
    assert trainer.state.log_history[0]["teca/rollout_difference"] > 1e-3
    assert len([r for r in caplog.records if "differ from the training forward's" in r.getMessage()]) == 1
    caplog.clear()
    run(CERTrainer, load_model(), tokenizer, config(max_steps=1))
    assert not caplog.records


def test_forced_tokens_are_masked_from_the_loss_and_from_teca(load_model, tokenizer, config):
    """An exit at the second token of every completion: what it forces has no gradient and counts in no mean."""
    rule = EarlyExit(100.0, (7, 8, 9), (5,), min_tokens=2)
    seen = []

    def reward(teca, entropy_sum, completion_ids, **kwargs):
        seen.extend(zip(teca, entropy_sum, completion_ids, strict=True))
        return [sum(ids) for ids in completion_ids]

    trainer = CERTrainer(
        load_model(),
        reward,
        args=config(max_steps=1),
        train_dataset=prompts(),
        processing_class=tokenizer,
        early_exit=rule,
    )
    batches = []
    original = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(original(inputs)) or batches[-1]
    trainer.train()
    (batch,) = batches
    long = 0
    for (teca, total, ids), mask, entropy in zip(seen, batch["tool_mask"], batch["rollout_entropies"], strict=True):
        if len(ids) < 2 or ids[0] in ENDS:
            assert mask[: len(ids)].all()
            continue
        long += 1
        assert ids[1:4] == [7, 8, 9]
        written = [0, *range(4, len(ids))]
        assert mask[: len(ids)].nonzero()[:, 0].tolist() == written
        assert total == pytest.approx(entropy[written].sum().item(), rel=1e-5)
        assert teca == pytest.approx(total / len(written), rel=1e-5)
    assert long >= 4
    log = trainer.state.log_history[0]
    assert log["early_exit/share"] == long / len(seen)
    assert log["early_exit/forced_tokens"] == 3 * long / len(seen)


def test_rollouts_that_show_no_logits_are_refused_where_they_must(load_model, tokenizer, config):
    def rollout(shown, trainer):
        return {
            "prompt_ids": [tokenizer(p)["input_ids"] for p in shown],
            "completion_ids": [[7, 8, 1] for _ in shown],
            "logprobs": None,
        }

    def train(**options):
        with pytest.warns(UserWarning, match="rollout_func"):
            trainer = CERTrainer(
                load_model(),
                count_reward,
                args=config(max_steps=1),
                train_dataset=prompts(),
                processing_class=tokenizer,
                rollout_func=rollout,
                **options,
            )
        trainer.train()

    train()
    with pytest.raises(ValueError, match="rollout_func returned no entropies"):
        train(teca_source="rollout")
    with pytest.raises(ValueError, match="early_exit is set, but rollout_func made none"):
        train(early_exit=EarlyExit(1.0, (7,), (7,), min_tokens=2))
    with pytest.raises(ValueError, match=r"early_exit_min_tokens is 9.*at most 8 tokens.*never fire"):
        train(early_exit=EarlyExit(1.0, (7,), (7,), min_tokens=9))
    with pytest.raises(ValueError, match="teca_source is 'both': expected one of"):
        CERTrainer(load_model(), count_reward, teca_source="both")


def test_entropies_from_the_rollout_engine_are_passed_on_and_no_pass_is_made(
    load_model, tokenizer, config, monkeypatch
):
    passes = spy_on_passes(monkeypatch)
    seen = []

    def rollout(shown, trainer):
        n = len(shown)
        return {
            "prompt_ids": [tokenizer(p)["input_ids"] for p in shown],
            "completion_ids": [[7 + i, 8, 1] for i in range(n)],
            "logprobs": None,
            "teca": [0.5 + i for i in range(n)],
            "entropy_sum": [1.5 + 3 * i for i in range(n)],
        }

    def reward(teca, entropy_sum, **kwargs):
        seen.append((teca, entropy_sum))
        return [-value for value in teca]

    with pytest.warns(UserWarning, match="rollout_func"):
        trainer = CERTrainer(
            load_model(),
            reward,
            args=config(max_steps=1),
            train_dataset=prompts(),
            processing_class=tokenizer,
            rollout_func=rollout,
        )
    trainer.train()
    assert seen == [([0.5 + i for i in range(8)], [1.5 + 3 * i for i in range(8)])]
    assert {kind for _, kind, _ in passes} == {"gradient"}
    assert trainer.state.log_history[0]["teca"] == pytest.approx(4.0)


def test_teca_stands_in_the_completions_table(load_model, tokenizer, config):
    import pandas as pd

    given = []

    def reward(teca, entropy_sum, **kwargs):
        given.extend(zip(teca, entropy_sum, strict=True))
        return [-value for value in teca]

    arguments = config(log_completions=True, max_steps=2)
    trainer, _ = run(
        CERTrainer, load_model(), tokenizer, arguments, reward=lambda completion_ids, **kwargs: reward(**kwargs)
    )
    tables = [pd.read_parquet(f"{arguments.output_dir}/completions/completions_{step:05d}.parquet") for step in (1, 2)]
    assert [tuple(row) for table in tables for row in table[["teca", "entropy_sum"]].to_numpy()] == given
    means = [entry["teca"] for entry in trainer.state.log_history[:2]]
    assert means == pytest.approx([table["teca"].mean() for table in tables], rel=1e-6)


def test_asynchronous_rewards_receive_teca_too(load_model, tokenizer, config):
    async def reward(completions, teca, **kwargs):
        return [math.exp(-value) for value in teca]

    trainer = CERTrainer(
        load_model(), reward, args=config(max_steps=1), train_dataset=prompts(), processing_class=tokenizer
    )
    trainer.train()
    assert 0 < trainer.state.log_history[0]["reward"] < 1


def test_training_flags_and_checkpointing_survive_the_extra_pass(load_model, tokenizer, config):
    model = load_model()
    trainer = CERTrainer(
        model,
        count_reward,
        args=config(gradient_checkpointing=True),
        train_dataset=prompts(),
        processing_class=tokenizer,
    )
    model.gradient_checkpointing_enable()
    model.train()
    frozen = model.model.layers[1].mlp.eval()
    before = {name: module.training for name, module in model.named_modules()}
    trainer._rollout_tool_mask = None
    trainer._score_rollouts([[6, 7], [8]], [[9, 10, 1], [11]])
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not frozen.training
    assert model.is_gradient_checkpointing


def test_a_data_column_of_our_name_is_refused(load_model, tokenizer, config):
    dataset = prompts().rename_column("goal", "teca")
    with pytest.raises(ValueError, match=r"train dataset has columns \['teca'\]"):
        CERTrainer(load_model(), count_reward, args=config(), train_dataset=dataset, processing_class=tokenizer)
    with pytest.raises(ValueError, match=r"eval dataset has columns \['teca'\]"):
        CERTrainer(
            load_model(),
            count_reward,
            args=config(),
            train_dataset=prompts(),
            eval_dataset=dataset,
            processing_class=tokenizer,
        )


def test_a_model_that_cannot_be_served_is_refused_at_construction(tokenizer, config):
    model = make_model("llama")
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(49, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot be trained with the fused head: .* torch.int8"):
        CERTrainer(model, count_reward, args=config(), train_dataset=prompts(), processing_class=tokenizer)
    assert grpo_trainer.add_fused_lm_head.__module__ == "trl.trainer.utils"


GIVEN = {
    "an empty completion": (
        {"completion_ids": [[7, 1]] * 3 + [[]] + [[7, 1]] * 4},
        r"no token as completion_ids\[3\]: expected at least the token that ends it",
    ),
    "an empty prompt": ({"prompt_ids": [[]] * 8}, r"no token as prompt_ids\[0\]: expected at least one token"),
    "too few completions": ({"completion_ids": [[7, 1]] * 3}, "returned 3 completion_ids for 8 prompts"),
    "text for ids": ({"completion_ids": ["w1"] * 8}, r"'w1' as completion_ids\[0\]: expected a list of token ids"),
    "fractions for ids": ({"completion_ids": [[7.5, 1.0]] * 8}, r"\[7.5, 1.0\] as completion_ids\[0\]: .*integers"),
    "a negative id": ({"completion_ids": [[7, -100]] * 8}, r"-100 in completion_ids\[0\]: expected token ids of at"),
    "one number for all": ({"teca": 0.5, "entropy_sum": 1.0}, "0.5 as teca: expected a list, one entry per prompt"),
    "None for one": (
        {"teca": [0.5] * 7 + [None], "entropy_sum": [1.0] * 8},
        r"None as teca\[7\]: give nats for every completion, or None for all",
    ),
    "an infinite entropy": ({"teca": [math.inf] * 8, "entropy_sum": [1.0] * 8}, r"inf as teca\[0\]: expected a finite"),
    "too few entropies": ({"teca": [0.5] * 4, "entropy_sum": [1.0] * 8}, "returned 4 teca for 8 prompts"),
    "one of the two": ({"teca": [0.5] * 8}, r"returned \['teca'\] only"),
    "a mask of another length": ({"env_mask": [[1]] * 8}, r"1 values as env_mask\[0\], whose completion has 2 tokens"),
    "logprobs of another length": ({"logprobs": [[-1.0]] * 8}, r"1 values as logprobs\[0\], whose completion has 2"),
    "entropies that are no record": ({"decoded": [[0.5, 0.5]] * 8}, r"a list as decoded\[0\]: expected a .*Decoded"),
    "a record of another length": (
        {"decoded": [Decoded([0.5], None)] * 8},
        r"1 entropies as decoded\[0\], whose completion has 2 tokens",
    ),
    "no logprobs": ({"logprobs": ...}, "rollout_func returned no logprobs; it returned prompt_ids, completion_ids"),
}


def trained_on(load_model, tokenizer, config, output, reward):
    def rollout(shown, trainer):
        return output(shown)

    with pytest.warns(UserWarning, match="rollout_func"):
        trainer = CERTrainer(
            load_model(),
            reward,
            args=config(max_steps=1),
            train_dataset=prompts(),
            processing_class=tokenizer,
            rollout_func=rollout,
        )
    trainer.train()
    return trainer


@pytest.mark.parametrize("case", GIVEN)
def test_what_no_rollout_can_be_is_named_where_it_comes_in(load_model, tokenizer, config, case):
    given, message = GIVEN[case]

    def output(shown):
        plain = {"prompt_ids": [[7]] * len(shown), "completion_ids": [[7, 1]] * len(shown), "logprobs": None, **given}
        return {key: value for key, value in plain.items() if value is not ...}

    with pytest.raises((TypeError, ValueError), match=message):
        trained_on(load_model, tokenizer, config, output, count_reward)


def test_a_rollout_that_is_no_dict_is_named(load_model, tokenizer, config):
    with pytest.raises(TypeError, match="rollout_func returned None: expected a dict with prompt_ids, completion_ids"):
        trained_on(load_model, tokenizer, config, lambda shown: None, count_reward)


def test_tensors_of_a_rollout_func_mean_their_numbers(load_model, tokenizer, config):
    seen = []

    def reward(teca, entropy_sum, completion_ids, **kwargs):
        seen.append((teca, entropy_sum, completion_ids))
        assert all(type(value) is float for value in teca + entropy_sum)
        return [-value for value in teca]

    def output(shown, form):
        count = len(shown)
        return {
            "prompt_ids": [form(tokenizer(p)["input_ids"]) for p in shown],
            "completion_ids": form([[7 + i, 8, 1] for i in range(count)]),
            "logprobs": form([[-1.0, -2.0, -3.0]] * count),
            "env_mask": form([[1, 1, 0]] * count),
            "teca": form([0.5 + i for i in range(count)]),
            "entropy_sum": [form(1.5 + 3 * i) for i in range(count)],
        }

    runs = [
        trained_on(load_model, tokenizer, config, lambda shown, form=form: output(shown, form), reward)
        for form in (lambda values: values, torch.tensor, np.array)
    ]
    assert seen[0] == ([0.5 + i for i in range(8)], [1.5 + 3 * i for i in range(8)], [[7 + i, 8, 1] for i in range(8)])
    assert seen[1] == seen[2] == seen[0]
    for other in runs[1:]:
        assert_same_run((other, []), (runs[0], []))


def test_none_for_the_entropies_has_the_rollouts_scored(load_model, tokenizer, config):
    ids = [[7 + i, 9, 1] for i in range(8)]
    inspector = Inspector(tokenizer)

    def output(shown):
        plain = {"prompt_ids": [tokenizer(p)["input_ids"] for p in shown], "completion_ids": ids, "logprobs": None}
        return {**plain, "teca": None, "entropy_sum": None, "decoded": None, "env_mask": None}

    with pytest.warns(UserWarning, match="rollout_func"):
        trainer = CERTrainer(
            load_model(),
            inspector,
            args=config(max_steps=1),
            train_dataset=prompts(),
            processing_class=tokenizer,
            rollout_func=lambda shown, trainer: output(shown),
        )
    inspector.trainer = trainer
    trainer.train()
    assert inspector.calls == 1
