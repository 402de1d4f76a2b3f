"""The head in one pass (--head_mode one_pass): loss, metrics and gradients of stock TRL's, for fewer GEMMs."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from same_run import run
from tiny_models import VOCABULARY, count_reward, make_model, prompts
from trl import GRPOConfig, GRPOTrainer

from cer_ext import linear_logprobs_and_entropy, tile_plan, tiles
from trainer.cer_trainer import CERTrainer
from trainer.one_pass_head import logprobs_and_entropy_in_one_pass

LENGTHS = [(2, 12), (5, 9), (1, 12), (4, 3)]  # of prompt and completion
PROMPT, COMPLETION = 5, 12
ROWS_AT_A_TIME = 16  # of 36 scored tokens


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """The batch is asked for in several parts, which end inside of completions."""
    monkeypatch.setitem(tile_plan.WHOLE_ROW_WORKSPACE_BYTES, "cpu", ROWS_AT_A_TIME * VOCABULARY * 4)


@pytest.fixture(scope="module")
def make_trainer(tokenizer, tmp_path_factory):
    """Trainers, one of a kind for the whole file, as they are in their loop."""
    made = {}

    def make(trainer_class, tuning="full", dtype=torch.float32, **options):
        key = (trainer_class, tuning, dtype, *options.items())
        if key not in made:
            arguments = GRPOConfig(
                output_dir=str(tmp_path_factory.mktemp("run")),
                use_cpu=True,
                bf16=False,
                report_to="none",
                per_device_train_batch_size=4,
                num_generations=4,
                max_completion_length=COMPLETION,
                gradient_checkpointing=False,
                temperature=0.9,
            )
            modules = ["q_proj", "lm_head"] if tuning == "lora on the head" else ["q_proj", "down_proj"]
            lora = LoraConfig(r=4, target_modules=modules, init_lora_weights=False)
            family = {"full": "phi", "lora": "qwen3"}.get(tuning, "llama")  # phi's head has a bias, qwen3's is tied
            torch.manual_seed(3)
            made[key] = trainer_class(
                make_model(family).to(dtype),
                count_reward,
                args=arguments,
                train_dataset=prompts(),
                processing_class=tokenizer,
                peft_config=None if tuning == "full" else lora,
                **options,
            )
        trainer = made[key]
        trainer.current_gradient_accumulation_steps = 2
        trainer.model.train()
        return trainer

    return make


def make_batch(dtype: torch.dtype = torch.float32, **more: bool) -> dict[str, torch.Tensor]:
    """What TRL hands to its loss: padded, with advantages of both signs and one of zero; `more` (True) adds columns."""
    generator = torch.Generator().manual_seed(5)

    def noise(scale, shape=(4, COMPLETION)):
        return scale * torch.randn(shape, generator=generator, dtype=dtype)

    def mask(lengths, width, left):
        ids = torch.arange(width).expand(len(lengths), width)
        ends = torch.tensor(lengths)[:, None]
        return (ids >= width - ends if left else ids < ends).long()

    batch = {
        "prompt_ids": torch.randint(6, VOCABULARY, (4, PROMPT), generator=generator),
        "prompt_mask": mask([p for p, _ in LENGTHS], PROMPT, left=True),
        "completion_ids": torch.randint(6, VOCABULARY, (4, COMPLETION), generator=generator),
        "completion_mask": mask([c for _, c in LENGTHS], COMPLETION, left=False),
        "advantages": torch.tensor([1.0, -0.7, 0.0, 0.4], dtype=dtype),
        "num_items_in_batch": torch.tensor(36),
    }
    columns = {
        "old_per_token_logps": -4 + noise(1.5),
        "ref_per_token_logps": -4 + noise(0.7),
        "sampling_per_token_logps": -4 + noise(1.0),
        "importance_sampling_ratio": noise(0.3).exp(),
        "tool_mask": (noise(1.0) > -0.8).long(),
        "rollout_entropies": 2.0 + noise(0.5),
    }
    return {**batch, **{name: columns[name] for name, wanted in more.items() if wanted}}


def step(trainer, batch, settings, monkeypatch):
    """loss, {parameter: gradient}, {metric: value} of one batch under some settings of the trainer."""
    with monkeypatch.context() as patch:
        for name, value in settings.items():
            if name.startswith("args."):
                patch.setattr(trainer.args, name.removeprefix("args."), value)
            else:
                patch.setattr(trainer, name, value, raising=name != "teca_source")  # stock TRL has none
        patch.setattr(trainer, "_last_world_entropy", 1.0, raising=False)
        patch.setattr(trainer, "_entropy_window_stats", None, raising=False)
        trainer._metrics["train"].clear()
        loss = trainer.compute_loss(trainer.model, batch)
        parameters = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(3.0 * loss, list(parameters.values()), allow_unused=True)
        return loss.detach(), dict(zip(parameters, gradients, strict=True)), dict(trainer._metrics["train"])


def assert_same_step(ours, theirs, tolerance) -> None:
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=tolerance, abs=tolerance)
    largest = max(gradient.abs().max() for gradient in theirs[1].values() if gradient is not None)
    assert largest > 1e-4
    for name, gradient in theirs[1].items():
        if gradient is None:
            assert ours[1][name] is None or not ours[1][name].any(), name
        else:
            error = (ours[1][name] - gradient).abs().max()
            assert error <= tolerance * largest, f"{name}: {error:.2e} of {largest:.2e}"
    metrics = {k: v for k, v in ours[2].items() if not k.startswith("teca/")}
    assert metrics.keys() == theirs[2].keys()
    for name, values in theirs[2].items():
        assert metrics[name] == pytest.approx(values, rel=10 * tolerance, abs=tolerance, nan_ok=True), name


LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"]
OLD = {"old_per_token_logps": True}
# TRL makes a pass for the correction, as it does where TECA comes from scoring.
VLLM = {"use_vllm": True, "vllm_importance_sampling_correction": True, "teca_source": "scoring"}
EXTRAS = {
    "on policy": ({}, {}),
    "ratios and clipping": (OLD, {"args.delta": 1.5}),
    "KL": (OLD | {"ref_per_token_logps": True}, {"beta": 0.1}),
    "KL with its importance correction": (
        OLD | {"ref_per_token_logps": True},
        {"beta": 0.1, "args.use_bias_correction_kl": True},
    ),
    "entropy bonus": ({}, {"_entropy_bonus_enabled": True, "entropy_coef": 0.05}),
    "adaptive entropy bonus": (
        OLD,
        {
            "_entropy_bonus_enabled": True,
            "use_adaptive_entropy": True,
            "entropy_coef": 0.05,
            "args.entropy_target": 3.0,
            "args.entropy_coef_delta": 0.01,
            "args.entropy_coef_max": 0.06,
            "args.entropy_coef_min": 0.0,
        },
    ),
    "importance correction of vLLM": (
        OLD | {"importance_sampling_ratio": True},
        VLLM,
    ),
    "tokens of tools": (OLD | {"tool_mask": True}, {}),
    "off-policy mask": (OLD | {"sampling_per_token_logps": True}, {"off_policy_mask_threshold": 0.1}),
    "all at once": (
        OLD | {"ref_per_token_logps": True, "importance_sampling_ratio": True, "tool_mask": True},
        {
            "beta": 0.1,
            **VLLM,
            "_entropy_bonus_enabled": True,
            "entropy_coef": 0.05,
        },
    ),
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_loss_metrics_and_gradients_equal_stock_trl(make_trainer, monkeypatch, caplog, tuning, loss_type, extra):
    columns, settings = EXTRAS[extra]
    settings = {"loss_type": loss_type, **settings}
    missed = watch_missed(monkeypatch)
    for dtype in (torch.float32, torch.float64):
        batch = make_batch(dtype, **columns)
        ours = make_trainer(CERTrainer, tuning, dtype, head_mode="one_pass")
        found = step(ours, batch, settings, monkeypatch)
        # TRL multiplies and folds in float32, whatever the model's dtype; ours in float64.
        assert_same_step(found, step(make_trainer(GRPOTrainer, tuning, dtype), batch, settings, monkeypatch), 5e-6)
        if dtype == torch.float64:
            two_passes = step(ours, batch, {**settings, "head_mode": "two_pass"}, monkeypatch)
            assert_same_step(found, two_passes, 1e-12)
    assert not missed or extra == "off-policy mask"
    assert not caplog.records  # no word of two passes


def watch_missed(monkeypatch) -> list[tuple[int, int]]:
    seen = []
    monkeypatch.setattr(CERTrainer, "_loss_was_another", lambda trainer, tokens, of: seen.append((tokens, of)))
    return seen


SEQUENCE = {
    "grpo": {"importance_sampling_level": "sequence"},  # GSPO
    "luspo": {"importance_sampling_level": "sequence"},
    "vespo": {},
}


@pytest.mark.parametrize("loss_type", SEQUENCE)
def test_ratios_of_sequences_are_known_ahead_on_policy_and_take_two_passes_off_it(
    make_trainer, monkeypatch, caplog, loss_type
):
    missed = watch_missed(monkeypatch)
    settings = {"loss_type": loss_type, **SEQUENCE[loss_type]}
    trainers = make_trainer(CERTrainer, head_mode="one_pass"), make_trainer(GRPOTrainer)
    monkeypatch.setattr(trainers[0], "_two_passes_said", set())
    batch = make_batch()
    seen = products(monkeypatch)
    assert_same_step(*(step(trainer, batch, settings, monkeypatch) for trainer in trainers), 5e-6)
    assert rows_of(seen, "forward") == SCORED
    assert not caplog.records
    for _ in range(2):
        seen.clear()
        batch = make_batch(**OLD)
        assert_same_step(*(step(trainer, batch, settings, monkeypatch) for trainer in trainers), 5e-6)
        assert rows_of(seen, "forward") == SCORED + rows_of(seen, "hidden") > SCORED
    (record,) = caplog.records
    assert "the head makes two passes, because" in record.message
    assert not missed


SCORED = sum(completion for _, completion in LENGTHS)
WITH_ADVANTAGE = range(SCORED - LENGTHS[2][1])


def products(monkeypatch) -> list[tuple[int, int, int]]:
    """Records the (rows, inner, cols) of every GEMM of the head."""
    seen = []
    multiply = tiles.Matrices.multiply

    def record(self, a, b, out, *, accumulate):
        seen.append((a.shape[0], a.shape[1], b.shape[1]))
        return multiply(self, a, b, out, accumulate=accumulate)

    monkeypatch.setattr(tiles.Matrices, "multiply", record)
    return seen


def rows_of(seen: list[tuple[int, int, int]], kind: str) -> int:
    """How many rows went through products that make logits, gradients of hidden states, or of the weight."""
    at = {"forward": (2, 0), "hidden": (1, 0), "weight": (0, 1)}[kind]
    return sum(shape[at[1]] for shape in seen if shape[at[0]] == VOCABULARY)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_token_costs_two_gemms_under_a_frozen_head_and_none_but_the_first_without_a_gradient(
    make_trainer, monkeypatch, tuning
):
    trainer = make_trainer(CERTrainer, tuning, head_mode="one_pass")
    seen = products(monkeypatch)
    batch = make_batch(old_per_token_logps=True, tool_mask=True)
    written = (batch["completion_mask"] * batch["tool_mask"] * (batch["advantages"] != 0)[:, None]).bool()
    # Clipped: the gradient of a ratio that has left the trust region for the better is zero.
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            COMPLETION,
            compute_entropy=True,
        )
    ratio, advantage = (logps - batch["old_per_token_logps"]).exp(), batch["advantages"][:, None]
    clipped = ((ratio > 1.2) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
    alive = int((written & ~clipped).sum())
    assert 5 < alive < len(WITH_ADVANTAGE) - 5
    seen.clear()
    step(trainer, batch, {"loss_type": "dapo"}, monkeypatch)
    assert rows_of(seen, "forward") == SCORED
    assert rows_of(seen, "hidden") == alive
    assert rows_of(seen, "weight") == (alive if tuning == "full" else 0)
    seen.clear()
    step(trainer, batch, {"loss_type": "dapo", "head_mode": "two_pass"}, monkeypatch)
    assert rows_of(seen, "forward") == SCORED + alive


def test_a_head_with_lora_takes_two_passes_and_no_gradient_of_its_frozen_weight(make_trainer, monkeypatch, caplog):
    trainer = make_trainer(CERTrainer, "lora on the head", head_mode="one_pass")
    batch = make_batch(**OLD)
    seen = products(monkeypatch)
    found = step(trainer, batch, {}, monkeypatch)
    (record,) = caplog.records
    assert "the low-rank part of a head with LoRA is multiplied in two passes" in record.message
    assert rows_of([shape for shape in seen if 16 in shape], "weight") == 0
    assert_same_step(found, step(trainer, batch, {"head_mode": "two_pass"}, monkeypatch), 0.0)
    assert found[1]["base_model.model.lm_head.lora_B.default.weight"].abs().max() > 1e-3


@pytest.mark.parametrize("guess", ["right", "wrong"])
def test_entropy_masks_are_taken_from_decoding_and_made_up_for_where_those_were_others(
    make_trainer, monkeypatch, caplog, guess
):
    trainers = make_trainer(CERTrainer, head_mode="one_pass"), make_trainer(GRPOTrainer)
    monkeypatch.setattr(trainers[0], "_two_passes_said", set())
    missed = watch_missed(monkeypatch)
    settings = {"loss_type": "dapo", "top_entropy_quantile": 0.4, "beta": 0.1}
    columns = OLD | {"ref_per_token_logps": True, "tool_mask": True}
    batch = make_batch(**columns)
    theirs = step(trainers[1], batch, settings, monkeypatch)
    assert_same_step(step(trainers[0], batch, settings, monkeypatch), theirs, 5e-6)
    (record,) = caplog.records
    assert "top_entropy_quantile" in record.message

    batch = make_batch(rollout_entropies=True, **columns)
    if guess == "right":
        with torch.no_grad():
            monkeypatch.setattr(trainers[0], "head_mode", "two_pass")
            entropies = []
            monkeypatch.setattr(
                trainers[0], "_compare_entropies", lambda rollout, training, mask: entropies.append(training.detach())
            )
            monkeypatch.setattr(trainers[0], "_decoded_step", trainers[0].state.global_step)
            step_without_gradient(trainers[0], batch, settings, monkeypatch)
            batch["rollout_entropies"] = entropies[0]
            monkeypatch.setattr(trainers[0], "head_mode", "one_pass")
    seen = products(monkeypatch)
    assert_same_step(step(trainers[0], batch, settings, monkeypatch), theirs, 5e-6)
    assert bool(missed) == (guess == "wrong")
    assert rows_of(seen, "forward") == SCORED + (2 * missed[0][0] if missed else 0)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate"])
def test_a_correction_for_vllm_that_the_loss_computes_is_part_of_what_is_known_ahead(
    make_trainer, monkeypatch, caplog, mode
):
    trainer = make_trainer(CERTrainer, head_mode="one_pass")
    monkeypatch.setattr(trainer, "_two_passes_said", set())
    missed = watch_missed(monkeypatch)
    settings = {
        "loss_type": "dapo",
        "use_vllm": True,
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": 0.3,
        "vllm_importance_sampling_clip_max": 2.0,
    }
    found = []
    for head_mode in ("two_pass", "one_pass"):
        batch = make_batch(sampling_per_token_logps=True)
        found.append(step(trainer, batch, {**settings, "head_mode": head_mode}, monkeypatch))
        assert mode.startswith("sequence") or batch["importance_sampling_ratio"].unique().numel() > 5
    assert_same_step(found[1], found[0], 5e-6)
    assert not missed
    assert [mode in record.message for record in caplog.records] == ([True] if mode == "sequence_truncate" else [])


def step_without_gradient(trainer, batch, settings, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        for name, value in settings.items():
            patch.setattr(trainer, name, value)
        trainer.compute_loss(trainer.model, batch)
        trainer._metrics["train"].clear()


class OtherLoss(CERTrainer):
    """A user's subclass: a term of its own, of whole sequences."""

    def _compute_loss(self, model, inputs):
        self.kept = []
        loss = super()._compute_loss(model, inputs)
        return loss + sum(logps.sum(dim=1).square().mean() for logps in self.kept) * 1e-3

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.kept.append(result[0])
        return result


def test_a_loss_that_is_not_trls_is_made_up_for_and_ends_the_mode(make_trainer, monkeypatch, caplog):
    trainer = make_trainer(OtherLoss, head_mode="one_pass")
    batch = make_batch(**OLD)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "head_mode", "two_pass")
        expected = step(trainer, batch, {}, monkeypatch)
    assert_same_step(step(trainer, batch, {}, monkeypatch), expected, 5e-6)
    assert trainer.head_mode == "two_pass"
    (record,) = caplog.records
    # One ratio of true to predicted is taken for the scale.
    assert f"the gradient of {SCORED - 1} of {SCORED} tokens is not what TRL's loss has" in record.message
    assert_same_step(step(trainer, batch, {}, monkeypatch), expected, 0.0)


def test_asking_the_loss_ahead_leaves_no_trace_in_the_trainer(make_trainer, monkeypatch):
    """Metrics are logged once, the adaptive coefficient moves once, and no other process is waited for."""
    columns, settings = EXTRAS["adaptive entropy bonus"]
    trainer = make_trainer(CERTrainer, head_mode="one_pass")
    calls = []
    for name in ("gather", "reduce", "gather_for_metrics"):
        real = getattr(trainer.accelerator, name)
        monkeypatch.setattr(
            trainer.accelerator, name, lambda *a, real=real, name=name, **k: (calls.append(name), real(*a, **k))[1]
        )
    found = []
    for head_mode in ("two_pass", "one_pass"):
        calls.clear()
        keys = set(vars(trainer))
        _, _, metrics = step(trainer, make_batch(**columns), {**settings, "head_mode": head_mode}, monkeypatch)
        assert set(vars(trainer)) == keys
        assert all(len(values) == 1 for values in metrics.values())
        found.append((list(calls), metrics["entropy_coef"]))
    assert found[0] == found[1]
    assert found[0][1] == [pytest.approx(0.06)]


UPSTREAM = {
    "right": lambda p: p,
    "scaled": lambda p: 1024.0 * p,
    "a third of the rows another": lambda p: torch.where(torch.arange(p.shape[1]) % 3 == 1, p * 2 - 0.3, p),
    "all others": lambda p: p.flip(1) + 0.1,
    "nothing was foreseen": lambda p: None,
    "nothing came": lambda p: 0.0 * p,
}


@pytest.mark.parametrize("case", UPSTREAM)
@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, False)])
def test_gradients_are_right_whatever_was_predicted(case, needed):
    generator = torch.Generator().manual_seed(2)
    hidden, weight, bias, true = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((40, 6), (VOCABULARY, 6), (VOCABULARY,), (2, 40))
    )
    target = torch.randint(VOCABULARY, (40,), generator=generator)
    true[:, 5:9] = 0
    predicted = true
    upstream = UPSTREAM[case](true)
    if upstream is None:
        predicted, upstream = torch.zeros_like(true), true
    operands = [x.requires_grad_(need) for x, need in zip((hidden, weight, bias), needed, strict=True)]

    told = []

    class Predicted:
        def __call__(self, logprobs, entropy, rows):
            return predicted[0, rows], predicted[1, rows]

        def missed(self, rows, of):
            told.append(rows)

    wanted = [x for x in operands if x.requires_grad]
    results = []
    for outputs in (
        linear_logprobs_and_entropy(hidden, weight, target, bias, temperature=0.7),
        logprobs_and_entropy_in_one_pass(hidden, weight, target, bias, Predicted(), temperature=0.7),
    ):
        results.append((*outputs[:2], *torch.autograd.grad(outputs[:2], wanted, tuple(upstream))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-11, atol=1e-11 * max(1.0, float(expected.detach().abs().max()))
        )
    wrong = ~torch.isclose(upstream, upstream.new_tensor(1024.0 if case == "scaled" else 1.0) * predicted).all(dim=0)
    if case == "nothing came":
        assert not told
    else:
        assert told == ([int(wrong.sum())] if wrong.any() else [])


def test_a_loss_of_log_probabilities_alone_and_a_second_backward():
    hidden = torch.randn(20, 6, requires_grad=True)
    weight, target = torch.randn(VOCABULARY, 6), torch.arange(20)

    class Prediction:
        def __call__(self, logprobs, entropy, rows):
            return torch.full_like(logprobs, -1.0), None

        def missed(self, rows, of):
            raise AssertionError

    logprobs, _ = logprobs_and_entropy_in_one_pass(hidden, weight, target, None, Prediction())
    (expected,) = torch.autograd.grad(-torch.log_softmax(hidden @ weight.T, -1)[range(20), target].sum(), hidden)
    for keep in (True, False):
        (found,) = torch.autograd.grad(-logprobs.sum(), hidden, retain_graph=keep)
        torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(-logprobs.sum(), hidden)


RUNS = {
    "bfloat16 by autocast": {"bf16": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "several iterations": {"num_iterations": 2, "beta": 0.05},
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_in_both_modes_are_the_same(load_model, tokenizer, config, caplog, case):
    runs = []
    for head_mode in ("two_pass", "one_pass"):
        trainer, samples = run(
            CERTrainer,
            load_model("qwen3"),
            tokenizer,
            config(optim="sgd", learning_rate=0.1, **RUNS[case]),
            peft_config=LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "down_proj"]),
            head_mode=head_mode,
        )
        runs.append((trainer, samples))
    assert runs[0][1] == runs[1][1]
    tolerance = 2e-3 if case.startswith("bfloat16") else 1e-5
    for one, other in zip(*(trainer.state.log_history[:-1] for trainer, _ in runs), strict=True):
        assert one.keys() == other.keys()
        for name in {"loss", "grad_norm", "entropy", "teca", "kl"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=tolerance, abs=1e-6)
    assert runs[0][0].state.log_history[0]["grad_norm"] > 1e-3
    assert not [record for record in caplog.records if "head_mode" in record.message]


def test_an_unknown_mode_is_refused(load_model):
    with pytest.raises(ValueError, match="head_mode is 'three_pass': expected one of two_pass, one_pass"):
        CERTrainer(load_model(), count_reward, head_mode="three_pass")
