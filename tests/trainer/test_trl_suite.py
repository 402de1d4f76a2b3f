"""What TRL documents of its GRPOTrainer, held by value with CERTrainer in its place.

Two kinds of test: the documented equation, recomputed here in float64 from plain logits; and, for options whose value
is not a short equation, the same run in stock TRL, number for number.
"""

from __future__ import annotations

import math

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from same_run import compare, run, token_statistics_in_float64
from tiny_models import ENDS, WORDS, count_reward, prompts

from trainer.cer_trainer import CERTrainer


def length_reward(completion_ids, **kwargs) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def even_only_reward(completion_ids, goal, **kwargs) -> list[float | None]:
    """Does not apply to odd goals."""
    return [float(ids[0]) if g % 2 == 0 else None for ids, g in zip(completion_ids, goal, strict=True)]


OPTIONS = {
    **{f"loss {name}": {"loss_type": name, "num_iterations": 2} for name in ("grpo", "bnpo", "dr_grpo", "dapo")},
    "loss cispo": {"loss_type": "cispo", "num_iterations": 2, "epsilon_high": 2.0},
    "loss sapo": {"loss_type": "sapo", "num_iterations": 2},
    "loss luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "num_iterations": 2},
    "loss vespo": {"loss_type": "vespo", "num_iterations": 2},
    "rewards scaled by batch": {"scale_rewards": "batch"},
    "rewards not scaled": {"scale_rewards": "none"},
    "sequence-level ratios": {"importance_sampling_level": "sequence", "loss_type": "grpo", "num_iterations": 2},
    "clipping on both sides": {"num_iterations": 3, "epsilon": 0.01, "epsilon_high": 0.02, "delta": 1.03},
    "off-policy mask": {"off_policy_mask_threshold": 1e-4, "num_iterations": 2},
    "KL without bias correction": {"use_bias_correction_kl": False, "num_iterations": 2},
    "high-entropy tokens only": {"top_entropy_quantile": 0.3},
    "truncated completions masked": {"mask_truncated_completions": True},
    "entropy bonus": {"entropy_coef": 0.05},
    "adaptive entropy bonus": {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 2.3},
    "reference synchronised": {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "head in float32": {"cast_lm_head_to_fp32": True},
    "padded to a multiple": {"pad_to_multiple_of": 8},
    "three slices per generation": {"steps_per_generation": 3, "gradient_accumulation_steps": 1},
    "truncated sampling": {"top_p": 0.9, "top_k": 12, "repetition_penalty": 1.1},
    "Adam and a schedule": {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "cosine"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_run_with_a_documented_option_equals_stock_trl(load_model, tokenizer, config, option):
    defaults = {"optim": "sgd", "learning_rate": 0.1, "beta": 0.04}
    compare(load_model, tokenizer, lambda: config(**{**defaults, **OPTIONS[option]}))


@pytest.mark.parametrize("kind", ["conversational", "plain", "iterable"])
def test_run_on_every_kind_of_data_with_evaluation_equals_stock_trl(load_model, tokenizer, config, kind):
    dataset = prompts(conversational=kind == "conversational")
    if kind == "iterable":
        rows = list(dataset)
        dataset = IterableDataset.from_generator(lambda: iter(rows))
    seen = []

    def reward(prompts, completions, completion_ids, **kwargs):
        seen.extend(zip(prompts, completions, completion_ids, strict=True))
        return count_reward(completion_ids=completion_ids, **kwargs)

    trainer = compare(
        load_model,
        tokenizer,
        lambda: config(optim="sgd", learning_rate=0.1, eval_strategy="steps", eval_steps=2, num_generations_eval=2),
        reward=reward,
        dataset=dataset,
        options=lambda: {"eval_dataset": prompts(4, conversational=kind == "conversational")},
    )
    evaluations = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 3]
    assert all(entry["eval_teca"] > 0 for entry in evaluations)
    for prompt, completion, ids in seen:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if kind == "conversational":
            assert prompt[0]["role"] == "user"
            assert completion == [{"role": "assistant", "content": text}]
        else:
            assert set(prompt.split()) <= set(WORDS)
            assert completion == text


def test_aggregation_by_normalised_sum_of_several_rewards_equals_stock_trl(load_model, tokenizer, config):
    from same_run import assert_same_run
    from trl import GRPOTrainer

    runs = []
    for trainer_class in (CERTrainer, GRPOTrainer):
        trainer = trainer_class(
            load_model(),
            [count_reward, length_reward, even_only_reward],
            args=config(
                optim="sgd",
                learning_rate=0.1,
                reward_weights=[1.0, -0.5, 0.1],
                multi_objective_aggregation="normalize_then_sum",
            ),
            train_dataset=prompts(),
            processing_class=tokenizer,
        )
        trainer.train()
        runs.append((trainer, list(trainer._logs["completion"])))
    assert_same_run(*runs)


def one_batch(config, **options):
    """One optimisation step on one batch of two groups of four: the logged numbers are of that batch alone."""
    return config(
        max_steps=1, per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=1, **options
    )


def trained_once(load_model, tokenizer, arguments, reward=count_reward, **options):
    """The trainer after one step, its log, and what the step was made of (completions in the batch's order)."""
    model = load_model()
    trainer, _ = run(CERTrainer, model, tokenizer, arguments, reward=reward, **options)
    batch = trainer._buffered_inputs[0]
    prompt_ids = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    ]
    lengths = batch["completion_mask"].sum(1)
    completion_ids = [ids[:n].tolist() for ids, n in zip(batch["completion_ids"], lengths, strict=True)]
    return trainer, trainer.state.log_history[0], batch, prompt_ids, completion_ids


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"])
def test_first_loss_is_the_documented_equation(load_model, tokenizer, config, loss_type):
    """On the first step the ratio is 1, so every loss is a weighted sum of advantages (and log-probabilities)."""
    arguments = one_batch(
        config,
        loss_type=loss_type,
        importance_sampling_level="sequence" if loss_type == "luspo" else "token",
        epsilon_high=5.0 if loss_type == "cispo" else 0.2,
    )
    _, log, batch, prompt_ids, completion_ids = trained_once(load_model, tokenizer, arguments)
    log_probs, entropies = token_statistics_in_float64(load_model(), prompt_ids, completion_ids, arguments.temperature)
    advantages = batch["advantages"].double()
    lengths = torch.tensor([len(ids) for ids in completion_ids], dtype=torch.float64)
    total = lengths.sum()
    assert lengths.min() < lengths.max()
    likelihood = torch.stack([row.sum() for row in log_probs])
    temperatures = torch.where(advantages > 0, arguments.sapo_temperature_pos, arguments.sapo_temperature_neg)
    expected = {
        "grpo": -advantages.mean(),
        "bnpo": -(advantages * lengths).sum() / total,
        "dr_grpo": -(advantages * lengths).sum() / (8 * arguments.max_completion_length),
        "dapo": -(advantages * lengths).sum() / total,
        "cispo": -(advantages * likelihood).sum() / total,
        "sapo": -(2 / temperatures * advantages).mean(),
        "luspo": -(advantages * lengths).mean(),
        "vespo": -(advantages * likelihood).sum() / total,
    }
    assert log["loss"] == pytest.approx(expected[loss_type].item(), rel=1e-5, abs=1e-6)
    assert log["entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-6)
    assert log["teca"] == pytest.approx(torch.stack([h.mean() for h in entropies]).mean().item(), rel=1e-6)
    assert log["entropy_sum"] == pytest.approx(torch.stack([h.sum() for h in entropies]).mean().item(), rel=1e-6)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_advantages_are_scaled_as_documented(load_model, tokenizer, config, scale_rewards):
    trainer, *_ = trained_once(load_model, tokenizer, one_batch(config, scale_rewards=scale_rewards))
    rewards = torch.tensor(list(trainer._logs["rewards"]["recorded"]), dtype=torch.float64).view(2, 4)
    deviation = {
        "group": rewards.std(dim=1, keepdim=True) + 1e-4,
        "batch": rewards.std() + 1e-4,
        "none": torch.tensor(1.0),
    }
    expected = (rewards - rewards.mean(dim=1, keepdim=True)) / deviation[scale_rewards]
    assert list(trainer._logs["advantages"]) == pytest.approx(expected.flatten().tolist(), rel=1e-4, abs=1e-6)


def test_weighted_rewards_add_up_and_none_is_left_out(load_model, tokenizer, config):
    trainer = CERTrainer(
        load_model(),
        [length_reward, even_only_reward],
        args=one_batch(config, reward_weights=[0.7, 0.2], scale_rewards="none", shuffle_dataset=False),
        train_dataset=prompts(),
        processing_class=tokenizer,
    )
    trainer.train()
    length, even = (torch.tensor(list(trainer._logs["rewards"][n])) for n in ("length_reward", "even_only_reward"))
    assert torch.isnan(even).tolist() == [False] * 4 + [True] * 4  # goals 0 and 1
    rewards = (0.7 * length + 0.2 * even.nan_to_num(0)).view(2, 4)
    log = trainer.state.log_history[0]
    assert log["reward"] == pytest.approx(rewards.mean().item(), rel=1e-5)
    assert log["rewards/even_only_reward/mean"] == pytest.approx(even.nanmean().item(), rel=1e-5)
    expected = (rewards - rewards.mean(1, keepdim=True)).flatten().tolist()
    assert list(trainer._logs["advantages"]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_completions_without_any_reward_do_not_move_the_policy(load_model, tokenizer, config):
    trainer = CERTrainer(
        load_model(),
        lambda completions, teca, **kwargs: [None] * len(teca),
        args=one_batch(config),
        train_dataset=prompts(),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == 0
    assert trainer.state.log_history[0]["teca"] > 0
    for name, parameter in load_model().named_parameters():
        torch.testing.assert_close(parameter, trainer.model.get_parameter(name), rtol=0, atol=1e-3)


def test_high_entropy_tokens_alone_make_the_loss(load_model, tokenizer, config):
    quantile = 0.25
    arguments = one_batch(config, loss_type="dapo", top_entropy_quantile=quantile)
    _, log, batch, prompt_ids, completion_ids = trained_once(load_model, tokenizer, arguments)
    _, entropies = token_statistics_in_float64(load_model(), prompt_ids, completion_ids, arguments.temperature)
    threshold = torch.quantile(torch.cat(entropies), 1 - quantile) - 1e-6
    kept = torch.stack([(h >= threshold).sum() for h in entropies])
    total = sum(len(h) for h in entropies)
    assert quantile * total - 1 <= kept.sum() < 2 * quantile * total  # first tokens of one prompt share their entropy
    expected = -(batch["advantages"].double() * kept).sum() / total
    assert log["loss"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_truncated_completions_leave_the_loss_but_keep_their_teca(load_model, tokenizer, config):
    given = {}

    def reward(completion_ids, teca, **kwargs):
        given.update(zip(map(tuple, completion_ids), teca, strict=True))
        return count_reward(completion_ids=completion_ids, **kwargs)

    arguments = one_batch(config, loss_type="bnpo", mask_truncated_completions=True, scale_rewards="none")
    _, log, batch, _, completion_ids = trained_once(load_model, tokenizer, arguments, reward=reward)
    truncated = {ids for ids in given if ids[-1] not in ENDS}
    kept = [ids for ids in completion_ids if ids]
    assert truncated, "the seed must give completions of both kinds"
    assert kept, "the seed must give completions of both kinds"
    assert len(kept) == 8 - sum(ids[-1] not in ENDS for ids in map(tuple, given))
    assert all(given[ids] > 0.1 for ids in truncated)
    lengths = torch.tensor([len(ids) for ids in completion_ids], dtype=torch.float64)
    expected = -(batch["advantages"].double() * lengths).sum() / lengths.sum()
    assert log["loss"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_prompts_are_padded_left_and_completions_right(load_model, tokenizer, config):
    _, log, batch, prompt_ids, completion_ids = trained_once(
        load_model, tokenizer, one_batch(config, shuffle_dataset=False, pad_to_multiple_of=4)
    )
    assert {len(ids) for ids in prompt_ids} == {1, 2}
    assert batch["prompt_ids"].shape[1] == batch["prompt_mask"].shape[1] == 4
    assert batch["completion_ids"].shape[1] % 4 == 0
    assert bool((batch["prompt_mask"].diff(dim=1) >= 0).all())
    assert bool((batch["completion_mask"].diff(dim=1) <= 0).all())
    assert log["completions/mean_length"] == pytest.approx(sum(map(len, completion_ids)) / 8)


def test_reference_is_mixed_with_the_policy_after_each_step(load_model, tokenizer, config):
    arguments = one_batch(config, beta=0.1, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=0.25)
    trainer, *_ = trained_once(load_model, tokenizer, arguments)
    start = load_model()
    for name, parameter in trainer.ref_model.named_parameters():
        expected = 0.75 * start.get_parameter(name) + 0.25 * trainer.model.get_parameter(name)
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("corrected", [False, True], ids=["plain", "bias correction"])
def test_kl_is_the_documented_estimator_against_the_start_model(load_model, tokenizer, config, corrected):
    """Two slices of one generation: the second is scored after the policy moved, the reference before."""
    arguments = config(
        max_steps=2, gradient_accumulation_steps=1, steps_per_generation=2, beta=0.1, use_bias_correction_kl=corrected
    )
    snapshots = []
    model = load_model()

    def hook(optimizer, args, kwargs):
        snapshots.append({name: p.detach().clone() for name, p in model.named_parameters()})

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(hook)
    trainer, _ = run(CERTrainer, model, tokenizer, arguments, optimizers=(optimizer, None))
    batch = trainer._buffered_inputs[1]
    prompt_ids = [i[m.bool()].tolist() for i, m in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    completion_ids = [
        i[m.bool()].tolist() for i, m in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    moved = load_model()
    moved.load_state_dict(snapshots[0], strict=False)
    policy, _ = token_statistics_in_float64(moved, prompt_ids, completion_ids, arguments.temperature)
    reference, _ = token_statistics_in_float64(load_model(), prompt_ids, completion_ids, arguments.temperature)
    difference = torch.cat(reference) - torch.cat(policy)
    # The samples come from the start model too, so the importance weight is the ratio of policy and reference.
    weight = (-difference).exp() if corrected else 1.0
    expected = (weight * (difference.exp() - difference - 1)).mean().item()
    assert expected > 1e-5
    assert trainer.state.log_history[1]["kl"] == pytest.approx(expected, rel=1e-3)
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-7)


def test_a_new_adapter_trains_alone_and_reloads_to_the_same_model(model_path, load_model, tokenizer, config, tmp_path):
    """From a path, as in a recipe, with an adapter on the head and a whole embedding saved beside it."""
    trainer, _ = run(
        CERTrainer,
        model_path("llama"),
        tokenizer,
        config(beta=0.05),
        peft_config=LoraConfig(r=4, target_modules=["v_proj", "lm_head"], modules_to_save=["embed_tokens"]),
    )
    start = load_model("llama").state_dict()
    for name, parameter in trainer.model.get_base_model().named_parameters():
        if "lora_" not in name and "modules_to_save" not in name:
            original = name.replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(parameter, start[original]), f"{name} is frozen and moved"
    trainer.save_model(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(load_model("llama"), tmp_path / "adapter").eval()
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        ours, again = trainer.model.eval()(input_ids=ids).logits, reloaded(input_ids=ids).logits
        before = load_model("llama")(input_ids=ids).logits
    torch.testing.assert_close(ours, again, rtol=1e-6, atol=1e-6)
    assert (ours - before).abs().max() > 1e-3


def test_a_continued_adapter_starts_from_its_own_reference(load_model, tokenizer, config):
    torch.manual_seed(1)
    model = get_peft_model(load_model(), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    trainer, _ = run(CERTrainer, model, tokenizer, config(beta=0.1))
    # Against the bare base model the first KL would be far from zero.
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert trainer.state.log_history[2]["kl"] > 1e-5
    adapters = dict(trainer.model.named_parameters())
    name = "base_model.model.lm_head.lora_B.{}.weight"
    assert not torch.equal(adapters[name.format("default")], adapters[name.format("ref")])


@pytest.mark.parametrize("kind", ["autocast", "bfloat16 weights"])
def test_bfloat16_stays_beside_stock_trl_within_its_precision(load_model, tokenizer, config, kind):
    from trl import GRPOTrainer

    logs = []
    for trainer_class in (CERTrainer, GRPOTrainer):
        model = load_model() if kind == "autocast" else load_model(dtype=torch.bfloat16)
        arguments = one_batch(config, bf16=kind == "autocast", beta=0.1)
        trainer, sampled = run(trainer_class, model, tokenizer, arguments)
        logs.append((trainer.state.log_history[0], sampled))
    (ours, our_samples), (theirs, their_samples) = logs
    assert our_samples == their_samples
    assert ours["reward"] == theirs["reward"]
    assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=5e-3)
    assert ours["teca"] > 0
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=5e-3)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)
    assert math.isfinite(ours["kl"])
