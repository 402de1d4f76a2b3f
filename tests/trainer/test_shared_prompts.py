"""A prompt run once for several completions: values and gradients are those of rows run one by one."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from same_run import compare, run
from tiny_models import VOCABULARY, WORDS, make_model

from trainer.cer_trainer import CERTrainer
from trainer.lm_head import add_fused_lm_head, backbone
from trainer.shared_prompts import lay_out, layout_of, worthwhile

PROMPTS = [list(range(6, 46)), [40, 30, 20, 41, 7, 9]]  # 40 and 6 tokens
ROWS = [(0, [11, 12, 13]), (1, [14]), (0, [15, 16, 17, 18, 19]), (1, [20, 21]), (0, []), (1, [22, 23, 24])]


def batch(rows=ROWS) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, completions on the right, as TRL does it; labels of the completions alone."""
    before, after = max(len(p) for p in PROMPTS), max(len(c) for _, c in rows)
    ids = torch.zeros(len(rows), before + after, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(rows):
        tokens = PROMPTS[prompt] + completion
        start = before - len(PROMPTS[prompt])
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :before] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def tokens_run(model) -> list[int]:
    """Fills with the number of tokens of every batch that the backbone scores from now on."""
    counts: list[int] = []

    def count(module, args, kwargs) -> None:
        if not kwargs["use_cache"]:  # generation has a cache
            counts.append(kwargs["input_ids"].numel())

    inner = backbone(model.get_base_model() if hasattr(model, "peft_config") else model)
    inner.register_forward_pre_hook(count, with_kwargs=True)
    return counts


def test_a_layout_holds_every_prompt_once_and_every_token_where_it_says():
    given = batch()
    layout = lay_out(given["input_ids"], given["attention_mask"], 40)
    # (40 + 3 + 5 + 0) and (6 + 1 + 2 + 3)
    assert layout.input_ids.shape == (2, 48)
    real = given["attention_mask"].bool()
    assert torch.equal(layout.input_ids.flatten()[layout.place][real], given["input_ids"][real])
    columns = torch.arange(45).expand(6, 45)
    assert torch.equal(layout.position_ids.flatten()[layout.place][real], columns[real])
    sees = layout.sees()[:, 0]
    group, query = divmod(int(layout.place[2, 40]), 48)  # token 15, behind the first prompt
    assert layout.input_ids[group][sees[group, query]].tolist() == [*PROMPTS[0], 15]
    assert sees.any(-1).all(), "a query that sees nothing is NaN"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "phi"])
def test_values_and_gradients_equal_those_of_rows_run_one_by_one(family, attention):
    results, counts = [], []
    for share in (True, False):
        model = make_model(family)
        model.set_attn_implementation(attention)
        add_fused_lm_head(model, 1.3, outputs=("log_probs", "entropy"), share_prompts=share)
        model.train()
        counts.append(tokens_run(model))
        out = model(**batch(), fused_lm_head=True)
        (
            out.log_probs * torch.linspace(-1, 1, out.log_probs.numel()).view_as(out.log_probs) + out.entropy
        ).sum().backward()
        results.append([out.log_probs, out.entropy, *(p.grad for p in model.parameters())])
    assert counts == [[96], [270]]
    for shared, plain in zip(*results, strict=True):
        torch.testing.assert_close(shared, plain, rtol=2e-5, atol=1e-5 * plain.abs().max().item())


def test_a_mask_that_hides_a_completion_hides_it_from_nobody_else():
    given = batch()
    given["attention_mask"][2, 40:] = 0
    given["labels"][2] = -100
    results = []
    for share in (True, False):
        model = make_model("llama")
        add_fused_lm_head(model, share_prompts=share)
        results.append(model(**given, fused_lm_head=True).log_probs)
    assert (results[0][2] == 0).all()
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-6)


def test_short_prompts_with_long_answers_are_not_shared():
    config = make_model("llama").config
    rows = [(1, [11] * 60)] * 4
    given = batch(rows)
    short = {name: value[:, 34:] for name, value in given.items()}  # without the padding before 6 tokens
    layout = lay_out(short["input_ids"], short["attention_mask"], 6)
    assert layout.input_ids.shape == (1, 246)
    # 246 (4 16 + 3 32 + 2 246) against 4 66 (4 16 + 3 32 + 2 66)
    assert not worthwhile(config, short["attention_mask"], layout)
    assert layout_of(make_model("llama"), (), dict(list(short.items())[:2]), short["labels"]) is None


UNFIT = {
    "convolutions": ("Lfm2", {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 1}, "layers of conv"),
    "positions from the mask": ("OPT", {"ffn_dim": 32, "word_embed_proj_dim": 16}, "differ by 8.9e-01"),
    "ALiBi": ("Mpt", {"d_model": 16, "n_heads": 2, "n_layers": 2}, "takes no position_ids"),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_a_model_that_cannot_share_says_why_and_runs_every_row(reason, caplog):
    name, options, message = UNFIT[reason]
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**({} if name == "Mpt" else sizes), **options, **ids)
    if name == "Mpt":
        config.vocab_size = VOCABULARY
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with caplog.at_level(logging.INFO, "trainer.lm_head"):
        add_fused_lm_head(model, share_prompts=True)
    assert message in caplog.text
    counts = tokens_run(model)
    model(**batch(), fused_lm_head=True)
    assert counts == [270]


def test_dropout_windows_and_other_attention_leave_the_rows_alone():
    given = batch()

    def shares(model) -> bool:
        return layout_of(model, (), {n: given[n] for n in ("input_ids", "attention_mask")}, given["labels"]) is not None

    model = make_model("llama")
    assert shares(model)
    assert not shares(make_model("llama", attention_dropout=0.1).train())
    assert shares(make_model("llama", attention_dropout=0.1).eval())
    adapted = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"], lora_dropout=0.1))
    assert not shares(adapted.get_base_model().train())
    model.config._attn_implementation = "flash_attention_2"
    assert not shares(model)
    assert not shares(make_model("mistral", sliding_window=44))
    assert shares(make_model("mistral", sliding_window=45))


TUNINGS = {
    "full": dict,
    "lora": lambda: {"peft_config": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])},
}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_run_with_shared_prompts_equals_stock_trl(load_model, tokenizer, config, tuning):
    """With a reference, gradient checkpointing, a pass for the old log-probabilities and samples used twice."""
    texts = [" ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(30 + i)) for i in range(4)]
    dataset = Dataset.from_dict({"prompt": texts, "goal": [i % 5 for i in range(4)]})

    def arguments():
        return config(
            optim="sgd",
            learning_rate=0.1,
            beta=0.1,
            max_steps=4,
            per_device_train_batch_size=8,
            num_generations=4,
            gradient_accumulation_steps=1,
            steps_per_generation=2,
            gradient_checkpointing=True,
            max_completion_length=6,
        )

    options = TUNINGS[tuning]
    compare(load_model, tokenizer, arguments, options=options, dataset=dataset)
    trainer, _ = run(CERTrainer, load_model(), tokenizer, arguments(), dataset=dataset, **options())
    counts = tokens_run(trainer.model)
    trainer.train()
    separate, _ = run(
        CERTrainer, load_model(), tokenizer, arguments(), dataset=dataset, share_prompts=False, **options()
    )
    counts_separate = tokens_run(separate.model)
    separate.train()
    assert sum(counts) < 0.6 * sum(counts_separate)
