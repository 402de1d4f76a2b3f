"""Rollouts with images: trained to the numbers of stock TRL, and scored with their images on every schedule."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from same_run import compare
from tiny_vision import make_processor, make_vision_model, pictures
from transformers import LlavaForConditionalGeneration

from trainer.cer_trainer import CERTrainer

SCHEDULES = {
    "aligned": {"gradient_accumulation_steps": 2, "steps_per_generation": 2},
    "misaligned": {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "max_steps": 4},
}


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def load_vision(processor, tmp_path_factory):
    """A fresh copy of the model, from a folder: TRL loads the reference from there."""
    path = tmp_path_factory.mktemp("vision")
    make_vision_model(processor).save_pretrained(path)
    processor.save_pretrained(path)
    return lambda family=None: LlavaForConditionalGeneration.from_pretrained(path)


@pytest.mark.parametrize(
    ("source", "schedule", "masked"),
    [("auto", "aligned", True), *(("scoring", schedule, masked) for schedule in SCHEDULES for masked in (False, True))],
)
def test_run_with_images_equals_stock_trl(load_vision, processor, config, source, schedule, masked):
    compare(
        load_vision,
        processor,
        lambda: config(
            optim="sgd", learning_rate=0.02, beta=0.1, mask_truncated_completions=masked, **SCHEDULES[schedule]
        ),
        ours={"teca_source": source},
        dataset=pictures(),
    )


def test_scoring_with_images_draws_no_random_number_under_dropout(load_vision, processor, config):
    compare(
        load_vision,
        processor,
        lambda: config(optim="sgd", learning_rate=0.02),
        options=lambda: {"peft_config": LoraConfig(r=4, lora_dropout=0.4, target_modules=r".*language_model.*q_proj")},
        ours={"teca_source": "scoring"},
        dataset=pictures(),
    )


class Inspector:
    """A reward function that holds the TECA it is given against float64: one row at a time, with its own image."""

    __name__ = "inspector"

    def __init__(self, processor, temperature):
        self.processor, self.temperature = processor, temperature
        self.trainer, self.rows, self.truncated, self.effect = None, 0, 0, 0.0

    def __call__(self, prompts, completion_ids, teca, entropy_sum, images, **kwargs):
        twin = copy.deepcopy(self.trainer.accelerator.unwrap_model(self.trainer.model)).double().eval()
        for prompt, ids, mean, total, shown in zip(prompts, completion_ids, teca, entropy_sum, images, strict=True):
            expected = self.entropies(twin, prompt, shown, ids)
            assert mean == pytest.approx(expected.mean().item(), rel=1e-4)
            assert total == pytest.approx(expected.sum().item(), rel=1e-4)
            self.rows += 1
            self.truncated += ids[-1] != 1
            black = [picture.point(lambda value: 0) for picture in shown]
            self.effect = max(self.effect, (self.entropies(twin, prompt, black, ids) - expected).abs().max().item())
        return [math.exp(-value) + 0.1 * len(ids) for value, ids in zip(teca, completion_ids, strict=True)]

    def entropies(self, model, prompt, images, completion_ids) -> torch.Tensor:
        text = self.processor.apply_chat_template(prompt, add_generation_prompt=True)
        inputs = self.processor(images=images, text=[text], return_tensors="pt")
        prompt_ids = inputs.pop("input_ids")
        ids = torch.cat([prompt_ids, torch.tensor([completion_ids])], dim=1)
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"].double()).logits[
                0, prompt_ids.size(1) - 1 : -1
            ]
        log_p = (logits / self.temperature).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("masked", [False, True], ids=["truncated kept", "truncated masked"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_teca_with_images_equals_float64_from_plain_logits(processor, config, schedule, masked):
    arguments = config(mask_truncated_completions=masked, max_completion_length=12, **SCHEDULES[schedule])
    inspector = Inspector(processor, arguments.temperature)
    trainer = CERTrainer(
        make_vision_model(processor),
        inspector,
        args=arguments,
        train_dataset=pictures(),
        processing_class=processor,
        teca_source="scoring",
    )
    inspector.trainer = trainer
    trainer.train()
    assert inspector.rows >= 16
    assert 0 < inspector.truncated < inspector.rows
    assert inspector.effect > 0.01, "the images changed nothing: their pass could have lacked them"


def test_a_rollout_func_of_a_vision_model_is_scored_with_the_images_of_the_data(processor, config):
    def rollout(shown, trainer):
        texts = [processor.apply_chat_template(prompt, add_generation_prompt=True) for prompt in shown]
        images = [[part["image"] for part in prompt[0]["content"] if part["type"] == "image"] for prompt in shown]
        ids = [processor(images=i, text=[t])["input_ids"][0] for i, t in zip(images, texts, strict=True)]
        return {"prompt_ids": ids, "completion_ids": [[7 + i, 9, 1] for i in range(len(shown))], "logprobs": None}

    inspector = Inspector(processor, 0.9)
    with pytest.warns(UserWarning, match="rollout_func"):
        trainer = CERTrainer(
            make_vision_model(processor),
            inspector,
            args=config(max_steps=1),
            train_dataset=pictures(),
            processing_class=processor,
            rollout_func=rollout,
        )
    inspector.trainer = trainer
    trainer.train()
    assert inspector.rows == 8
    assert inspector.effect > 0.01


def some_pictures(absent, rows: range) -> Dataset:
    """Eight rows, without a picture (`absent` in its place) in those that are named."""
    every = list(pictures())
    images = [absent if i in rows else row["images"] for i, row in enumerate(every)]
    texts = [[{"role": "user", "content": f"w{i} w2"}] for i in range(len(every))]
    return Dataset.from_dict({"prompt": texts, "images": images, "goal": [row["goal"] for row in every]})


def train_on(dataset: Dataset, processor, config, reward) -> None:
    trainer = CERTrainer(
        make_vision_model(processor),
        reward,
        args=config(max_steps=1, per_device_train_batch_size=8, gradient_accumulation_steps=1, num_generations=2),
        train_dataset=dataset,
        processing_class=processor,
        teca_source="scoring",
    )
    trainer.train()


@pytest.mark.parametrize("absent", [[], None], ids=["empty list", "None"])
def test_a_batch_of_which_some_rows_have_no_image_is_told_so(processor, config, absent):
    told = r"[246] of 8 prompts of this batch have no image \(the first is row [0-7]: 'w[0246] w2'\)"
    with pytest.raises(ValueError, match=told) as error:
        train_on(
            some_pictures(absent, range(0, 8, 2)),
            processor,
            config,
            lambda completions, **kwargs: [0.0] * len(completions),
        )
    assert "give every row an image, or train the rows without one apart" in str(error.value)


@pytest.mark.parametrize("absent", [[], None], ids=["empty list", "None"])
def test_rows_none_of_which_has_an_image_are_trained_as_text(processor, config, absent):
    seen = []

    def reward(completions, teca, **kwargs):
        seen.extend(teca)
        return [float(value) for value in teca]

    train_on(some_pictures(absent, range(8)), processor, config, reward)
    assert len(seen) == 8
    assert all(0 < value < math.log(len(processor.tokenizer)) for value in seen)


def test_num_iterations_is_as_it_was_after_scoring_and_after_a_failure(processor, config):
    def reward(teca, **kwargs):
        seen.append(trainer.num_iterations)
        if len(seen) == 2:
            raise RuntimeError("the second batch fails")
        return teca

    seen = []
    trainer = CERTrainer(
        make_vision_model(processor),
        reward,
        args=config(),
        train_dataset=pictures(),
        processing_class=processor,
        teca_source="scoring",
    )
    batches = []
    original = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(original(inputs)) or batches[-1]
    with pytest.raises(RuntimeError, match="the second batch fails"):
        trainer.train()
    assert trainer.num_iterations == 1
    assert "old_per_token_logps" not in batches[0]
