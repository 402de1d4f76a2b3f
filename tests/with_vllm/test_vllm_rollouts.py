"""GRPO with rollouts by vLLM in this process, on a CPU: weights that take effect, TECA without a pass, early exits."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import torch
from engines import save_model
from peft import LoraConfig
from tiny_models import count_reward, prompts
from transformers import AutoModelForCausalLM
from trl import GRPOConfig
from trl.trainer import grpo_trainer

from trainer.cer_trainer import CERTrainer
from trainer.sampling.early_exit import EarlyExit
from trainer.sampling.vllm_generation import RecordingVLLMGeneration

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"])
TEMPERATURE = 0.9


def arguments(path, **options) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(path / "run"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=16,
        gradient_checkpointing=False,
        temperature=TEMPERATURE,
        use_vllm=True,
        vllm_max_model_length=64,
        vllm_gpu_memory_utilization=0.1,
        **{"max_steps": 2, "vllm_mode": "colocate", **options},
    )


def train(model, path, tokenizer, **options):
    trainer_options = {k: options.pop(k) for k in ("peft_config", "early_exit", "teca_source") if k in options}
    seen = []

    def reward(teca, entropy_sum, completion_ids, goal, **kwargs):
        seen.append((teca, [len(ids) for ids in completion_ids], entropy_sum))
        return count_reward(completion_ids, goal)

    trainer = CERTrainer(
        str(model),
        reward,
        args=arguments(path, **options),
        train_dataset=prompts(),
        processing_class=tokenizer,
        **trainer_options,
    )
    trainer.train()
    return trainer, seen


def largest_differences(trainer, tokenizer) -> tuple[float, float]:
    """Of vLLM's log-probabilities and entropies from those of the policy in training, over new samples."""
    ids = [tokenizer(text)["input_ids"] for text in prompts()["prompt"]]
    trainer.vllm_generation.sync_weights()
    _, completions, logprobs, _ = trainer.vllm_generation.generate(ids, None, 1)
    policy = trainer.model.eval()
    logprob_error = entropy_error = 0.0
    known = trainer.vllm_generation.take_decoded()
    for prompt, tokens, drawn, one in zip(ids, completions, logprobs, known, strict=True):
        tokens = list(tokens)
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        logp = (logits.double() / TEMPERATURE).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        own = logp.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        logprob_error = max(logprob_error, (own - torch.tensor([row[0] for row in drawn])).abs().max().item())
        entropy_error = max(entropy_error, (entropy - torch.tensor(one.entropies)).abs().max().item())
    return logprob_error, entropy_error


def process_around_the_engines_start(monkeypatch) -> list:
    """What an engine in this process changes by itself, before and after it starts: random numbers, torch's threads."""
    states = []
    start = RecordingVLLMGeneration._init_vllm

    def watched(self):
        for act in (lambda: None, lambda: start(self)):
            act()
            numbers = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
            states.append((*numbers, torch.set_num_threads))

    monkeypatch.setattr(RecordingVLLMGeneration, "_init_vllm", watched)
    return states


@pytest.mark.parametrize(
    ("tuning", "tied"), [("full", True), ("full", False), ("lora", True)], ids=["full, tied head", "full", "lora"]
)
def test_new_weights_take_effect_and_no_pass_is_made(tuning, tied, tmp_path, tokenizer, monkeypatch, capfd, caplog):
    model = tmp_path / "model"
    save_model(model, tokenizer, tie_word_embeddings=tied)
    passes = []
    original = grpo_trainer.GRPOTrainer._get_per_token_logps_and_entropies

    def counted(self, *args, **kwargs):
        passes.append("gradient" if torch.is_grad_enabled() else "scoring")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(grpo_trainer.GRPOTrainer, "_get_per_token_logps_and_entropies", counted)
    process = process_around_the_engines_start(monkeypatch)
    trainer, seen = train(model, tmp_path, tokenizer, **({"peft_config": LORA} if tuning == "lora" else {}))
    assert passes == ["gradient", "gradient"]
    before, after = process
    assert before == after
    for entry in trainer.state.log_history[:2]:
        assert entry["teca/rollout_difference_max"] < 2e-5
        assert entry["sampling/sampling_logp_difference/max"] < 1e-4
        assert entry["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-4)
        assert entry["grad_norm"] > 1e-3
    logprob_error, entropy_error = largest_differences(trainer, tokenizer)
    assert logprob_error < 1e-4
    assert entropy_error < 2e-5
    start = AutoModelForCausalLM.from_pretrained(model).eval()
    trainer.model = start  # the weights did change: the start model's log-probabilities are others
    assert max(largest_differences_from(start, trainer, tokenizer)) > 0.01
    for teca, lengths, total in seen:
        assert [a * b for a, b in zip(teca, lengths, strict=True)] == pytest.approx(total, rel=1e-5)
    out, err = capfd.readouterr()
    assert out.count("the pair that this project is tested with") == 1
    assert "TRL currently supports" not in out + err + caplog.text
    assert "Failed to load weights" not in out + err + caplog.text
    del trainer
    gc.collect()


def largest_differences_from(model, trainer, tokenizer):
    """As `largest_differences`, of another model and without handing over weights."""
    ids = [tokenizer(text)["input_ids"] for text in prompts()["prompt"]]
    _, completions, logprobs, _ = trainer.vllm_generation.generate(ids, None, 1)
    trainer.vllm_generation.take_decoded()
    for prompt, tokens, drawn in zip(ids, completions, logprobs, strict=True):
        tokens = list(tokens)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        own = (logits / TEMPERATURE).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        yield (own - torch.tensor([row[0] for row in drawn])).abs().max().item()


def test_the_correction_in_the_loss_trains_as_trls_does(tmp_path, tokenizer, model_dir):
    """Factors are held to a half, so that a loss without them would be another."""
    half = {"vllm_importance_sampling_clip_max": 0.5, "vllm_importance_sampling_mode": "token_truncate"}
    trained = {}
    for source in ("rollout", "scoring"):
        trainer, _ = train(model_dir, tmp_path, tokenizer, teca_source=source, **half)
        assert trainer._corrects_in_loss == (source == "rollout")
        for entry in trainer.state.log_history[:2]:
            assert entry["sampling/importance_sampling_ratio/max"] == 0.5
        trained[source] = trainer.state.log_history, {n: p.detach() for n, p in trainer.model.named_parameters()}
        del trainer
        gc.collect()
    (ours, parameters), (theirs, expected) = trained["rollout"], trained["scoring"]
    for name in ("loss", "grad_norm", "teca", "sampling/sampling_logp_difference/mean"):
        assert [e[name] for e in ours[:2]] == pytest.approx([e[name] for e in theirs[:2]], rel=1e-3, abs=2e-6), name
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=2e-4)  # Adam steps of 1e-2


def test_exits_are_made_and_masked_and_scoring_still_works(tmp_path, tokenizer, model_dir):
    rule = EarlyExit(100.0, (7, 8), (5,), 3)
    trainer, _ = train(model_dir, tmp_path, tokenizer, early_exit=rule, teca_source="scoring")
    log = trainer.state.log_history[0]
    assert 0 < log["early_exit/share"] <= 1
    assert 0 < log["early_exit/forced_tokens"] <= 2
    assert "teca/rollout_difference" not in log
    del trainer
    gc.collect()


def test_a_server_that_is_not_there_is_waited_for_aloud_and_named(tmp_path, tokenizer, model_dir, capfd):
    with pytest.raises(ConnectionError, match=r"no vLLM server at http://127.0.0.1:9 after 1 s; .*vllm serve"):
        train(
            model_dir,
            tmp_path,
            tokenizer,
            vllm_mode="server",
            vllm_server_base_url="http://127.0.0.1:9",
            vllm_server_timeout=1.0,
        )
    assert "waiting for the vLLM server at http://127.0.0.1:9, up to 1 s" in capfd.readouterr().out


def test_the_command_trains_with_vllm_and_says_what_cannot_be(tmp_path, tokenizer, model_dir, capsys):
    import json

    from trainer import grpo

    data = tmp_path / "words.jsonl"
    data.write_text("".join(json.dumps({"question": f"w{i} w{i + 1}", "answer": "1"}) + "\n" for i in range(16)))
    command = ["--config", "smoke_gsm8k", "--dataset", str(data), "--model_name_or_path", str(model_dir)]
    command += [
        "--output_dir",
        str(tmp_path / "run"),
        "--use_vllm",
        "--max_steps",
        "2",
        "--max_completion_length",
        "12",
    ]
    command += [
        "--vllm_max_model_length",
        "64",
        "--report_to",
        "none",
        "--vllm_gpu_memory_utilization",
        "0.1",
        "--use_cpu",
        "true",
    ]
    command += ["--bf16", "false", "--early_exit", "50", "--early_exit_min_tokens", "4", "--early_exit_text", "w3"]
    assert grpo.main(command) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("early_exit/share", 0) > 0 for line in lines)

    def refused(*more):
        capsys.readouterr()
        assert grpo.main([*command, *more]) == 2
        return capsys.readouterr().err

    assert "no token </think>" in refused("--early_exit_text", "</think>")
    assert "never fire" in refused("--early_exit", "0")
    assert "there is no GPU here" in refused("--vllm_mode", "server")
    assert grpo.main(["--use_vllm"]) == 2
    assert "heads hold 16 numbers" in capsys.readouterr().err
