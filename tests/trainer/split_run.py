"""One process of 1, 2 or 4: a run whose completions are given, so that it is the same run however it is split.

    torchrun --nproc_per_node N split_run.py FOLDER {none,fsdp2} NAME[=CHECKPOINT] ...

In: FOLDER, where runs are; NAME of each, and the CHECKPOINT of another to go on from. Out: FOLDER/NAME with checkpoints
of steps 2 and 4, and FOLDER/NAME.pt: the log, rewards and advantages by function, and the weights at the end.

A step has 12 completions to 3 prompts: over 2 processes one group lies half on each, over 4 every process holds three
quarters of a group. A completion is what a coin of the step and of its place in the whole batch makes of its prompt.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from multi_process_run import allow_fsdp_on_cpu, whole_parameters
from trl import GRPOConfig

from trainer.prompts.prompt import Prompt
from trainer.rewards import reward_function
from trainer.tiny.model import build_model
from trainer.tiny.tokenizer import byte_tokenizer
from trainer.training import arguments, launch, resume_settings, start, survival
from trainer.training.run import build

# Every reward that compares the completions of a group, and the two on entropy.
REWARDS = ["cer", "total_entropy", "length_penalty", "kimi", "efficient", "grpo_lambda", "gr3", "conciser", "decided"]
PER_DEVICE = {1: 6, 2: 3, 4: 3}
PASSES = {1: 2, 2: 2, 4: 1}


def problems() -> Dataset:
    rows = [(f"{a} + 2", str(a + 2)) for a in range(9)]
    prompts = [Prompt().messages(question) for question, _ in rows]
    return Dataset.from_dict({"prompt": prompts, "ground_truth": [answer for _, answer in rows]})


def completion(prompt: list[dict], step: int, place: int) -> str:
    """Of several lengths, right three times in four; a repetition now and then."""
    coin = random.Random(f"{step} {place} {prompt[-1]['content']}")
    first = int(prompt[-1]["content"].split()[0])
    answer = first + 2 + (coin.random() < 0.25)
    text = "so " * coin.randrange(6) + f"it is = {answer} " + f"= {answer} " * coin.randrange(3)
    return text + f"\\boxed{{{answer}}}"


def given(prompts: list, trainer) -> dict[str, list]:
    """TRL's rollout_func."""
    tokenizer, first = trainer.processing_class, trainer.accelerator.process_index * len(prompts)
    ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
    texts = [completion(prompt, trainer.state.global_step, first + i) for i, prompt in enumerate(prompts)]
    end = [tokenizer.eos_token_id]
    written = [tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts]
    return {"prompt_ids": ids["input_ids"], "completion_ids": written, "logprobs": None}


def make(folder: Path, name: str, processes: int, checkpoint: Path | None = None, **more):
    """The run, checked and prepared as the program does. Raises ConfigError."""
    tokenizer = byte_tokenizer()
    run = arguments.RunArguments(reward=REWARDS, sampler="trl", samples_per_log=0)
    config = GRPOConfig(
        output_dir=str(folder / name),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        max_steps=4,
        save_steps=2,
        learning_rate=1e-2,
        adam_epsilon=1e-2,  # a gradient that is all rounding moves nothing
        gradient_checkpointing=False,
        num_generations=4,
        max_completion_length=64,
        beta=0.0,
        seed=5,
        **{
            "per_device_train_batch_size": PER_DEVICE[processes],
            "gradient_accumulation_steps": PASSES[processes],
            **more,
        },
    )
    settings = resume_settings.settings(
        run,
        config,
        processes=config.world_size,
        sharding=launch.sharding_asked_for(config),
        training_data=resume_settings.data_digest(problems()),
    )
    start.check_resume(config, checkpoint, settings)
    return build(
        run,
        config,
        model=build_model(tokenizer, seed=1),
        processing_class=tokenizer,
        reward_funcs=[reward_function(reward, max_length=64) for reward in REWARDS],
        train_dataset=problems(),
        settings=settings,
        rollout_func=given,
    )


def result_of(trainer) -> dict:
    weights = whole_parameters(trainer.model)  # all take part
    return {
        "log": trainer.state.log_history,
        "rewards": {name: list(values) for name, values in trainer._logs["rewards"].items()},
        "advantages": list(trainer._logs["advantages"]),
        "teca": list(trainer._logs["extra"]["teca"]),
        "weights": weights,
    }


def run(folder: Path, name: str, checkpoint: Path | None = None) -> int:
    for forget in (AcceleratorState._reset_state, GradientState._reset_state):
        forget()
    trainer = make(folder, name, int(os.environ.get("WORLD_SIZE", 1)), checkpoint)
    code = survival.train(trainer, resume_from_checkpoint=checkpoint)
    result = result_of(trainer)
    if trainer.accelerator.is_main_process:
        torch.save(result, folder / f"{name}.pt")
    return code


def main(folder: str, sharding: str, *runs: str) -> int:
    if sharding == "fsdp2":
        allow_fsdp_on_cpu()
    codes = []
    for name, _, checkpoint in (each.partition("=") for each in runs):
        codes.append(run(Path(folder), name, Path(folder) / checkpoint if checkpoint else None))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
