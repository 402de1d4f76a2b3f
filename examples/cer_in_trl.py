"""CER in a TRL script: `CERTrainer` takes the place of `trl.GRPOTrainer`, and the reward gets each response's TECA.

    python examples/cer_in_trl.py                                          # an embedded model, a minute or two
    python examples/cer_in_trl.py --model Qwen/Qwen3-0.6B --data my.jsonl  # rows {"prompt": ..., "ground_truth": ...}

Beside a plain TRL script the trainer's class and the reward differ. Everything else is TRL's: options, logging,
checkpoints, PEFT, several GPUs.
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset, load_dataset
from trl import GRPOConfig

from trainer.cer_trainer import CERTrainer  # in the place of: from trl import GRPOTrainer
from trainer.experiment.warm_start import WarmStartSettings, warm_start
from trainer.rewards import cer_reward  # 1 + exp(-TECA)/2 if the answer is right, else 0
from trainer.tiny.problems import draw_problems


def word_problems(count: int) -> Dataset:
    """Small word problems. Any data set with a `prompt` and a `ground_truth` does."""
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": problem.question}], "ground_truth": str(problem.answer)}
            for problem in draw_problems(count, seed=0, held_out=False)
        ]
    )


def main(argv: list[str] | None = None) -> CERTrainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or hub name; default: the embedded model, taught to overthink")
    parser.add_argument("--data", help="a json or jsonl file; default: small word problems")
    parser.add_argument("--steps", type=int, default=20, help="optimisation steps; default: 20")
    parser.add_argument("--output", default="runs/cer_in_trl", help="default: runs/cer_in_trl")
    args = parser.parse_args(argv)

    # The embedded model starts from a short supervised training on answers that check more than they must.
    model = args.model or str(warm_start(WarmStartSettings(steps=300)))
    dataset = load_dataset("json", data_files=args.data, split="train") if args.data else word_problems(512)

    config = GRPOConfig(
        output_dir=args.output,
        max_steps=args.steps,
        per_device_train_batch_size=32,  # completions a step: 4 prompts with 8 completions each
        num_generations=8,
        max_completion_length=128,
        learning_rate=3e-4,  # for 0.1M parameters; for a real model 1e-6 (full) or 1e-5 (LoRA)
        temperature=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = CERTrainer(model=model, reward_funcs=cer_reward, args=config, train_dataset=dataset)
    trainer.train()

    # TRL logs a line per step; these keys tell the story: TECA falls, and with it the length.
    print(f"{'step':>4} {'reward':>8} {'accuracy':>9} {'TECA':>7} {'tokens':>7}")
    for entry in trainer.state.log_history:
        if "reward" in entry:
            shown = (entry["reward"], entry["accuracy"], entry["teca"], entry["completions/mean_length"])
            print("{:4d} {:8.3f} {:9.2f} {:7.3f} {:7.1f}".format(entry["step"], *shown))
    return trainer


if __name__ == "__main__":
    main()
