"""One GRPO step of a real model, ours with CER beside stock TRL with accuracy alone: seconds of its parts, memory.

    python -m bench.with_vllm.grpo_step --rounds 2 --output FILE          every way in turn, CPU seconds of each part
    python -m bench.with_vllm.grpo_step --memory "ours, vLLM"             the process's peak over one step of one way

The recipe smollm2_sums (SmolLM2-135M, LoRA on all linear layers, a prompt of 152 tokens), with completions of one
length, so that every way does the same work. The ways:

    stock, transformers      trl.GRPOTrainer, model.generate
    ours, transformers       CERTrainer, the same, TECA from decoding
    ours, own loop           CERTrainer, trainer/sampling/rollout.py (what the recipe takes)
    stock, vLLM              trl.GRPOTrainer with vLLM in the process. By itself it ends at its first hand-over of
                             weights on a CPU; it is given ours (vllm_generation.py), without entropies
    ours, vLLM               CERTrainer, TECA from decoding
    ours, vLLM, scoring      CERTrainer, TECA from a pass over the finished rollouts

Seconds are those of the CPU on one thread. generate holds the hand-over of weights to vLLM; score is everything until
the advantages are known; train is forward, backward, update. Rounds run every way once, from another one on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

NEVER_ENDS = 10**6  # no token: responses end at their limit
STOCK = {"transformers": "stock, transformers", "vLLM": "stock, vLLM"}
WAYS = (
    "stock, transformers",
    "ours, transformers",
    "ours, own loop",
    "stock, vLLM",
    "ours, vLLM",
    "ours, vLLM, scoring",
)


def make_trainer(way: str, options: list[str]):
    """The trainer of one way for one step, as trainer.grpo would build it from the recipe."""
    import transformers
    import trl
    from trl import get_peft_config
    from trl.trainer import grpo_trainer

    from trainer.cer_trainer import CERTrainer
    from trainer.datasets import load_problems
    from trainer.rewards import accuracy_reward, cer_reward
    from trainer.sampling.rollout import rollout
    from trainer.training import arguments
    from trainer.training.policy import find_weights, load_policy, load_policy_tokenizer
    from trainer.training.run_prompt import prompt_of_run

    transformers.utils.logging.disable_progress_bar()
    by_vllm = "vLLM" in way
    own_loop = way == "ours, own loop"
    command = ["--config", "smollm2_sums", "--max_steps", "1", "--report_to", "none", "--save_strategy", "no", *options]
    command += ["--use_cpu", "true", "--disable_tqdm", "true", "--logging_strategy", "no"]
    command += ["--sampler", "embedded" if own_loop else "trl"]
    if by_vllm:
        command += ["--use_vllm", "--vllm_gpu_memory_utilization", "0.1", "--vllm_max_model_length", "512"]
    run, config, model_config = arguments.parse(command)
    if by_vllm:
        config.generation_kwargs = {"ignore_eos": True}
    elif not own_loop:
        config.generation_kwargs = {"min_new_tokens": config.max_completion_length}
    find_weights(model_config, config, None)
    tokenizer = load_policy_tokenizer(model_config, config)
    problems = load_problems(run.dataset, prompt=prompt_of_run(run), max_samples=64)
    given = {
        "model": load_policy(model_config, config, tokenizer),
        "args": config,
        "train_dataset": problems,
        "processing_class": tokenizer,
        "peft_config": get_peft_config(model_config),
    }
    if not way.startswith("stock"):
        source = "scoring" if "scoring" in way else "auto"
        if own_loop:
            given["rollout_func"] = rollout
        trainer = CERTrainer(reward_funcs=cer_reward, teca_source=source, **given)
        if own_loop:
            trainer.eos_token_ids = [NEVER_ENDS]
        return trainer
    theirs = grpo_trainer.VLLMGeneration
    if by_vllm:
        from trainer.sampling.vllm_generation import RecordingVLLMGeneration

        grpo_trainer.VLLMGeneration = lambda *a, **k: RecordingVLLMGeneration(*a, records=False, rule=None, **k)
    try:
        return trl.GRPOTrainer(reward_funcs=accuracy_reward, **given)
    finally:
        grpo_trainer.VLLMGeneration = theirs


class Parts:
    """CPU seconds of a trainer's parts, over one step."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.seconds: dict[str, float] = {}
        for name in ("_generate_single_turn", "_generate_and_score_completions", "training_step"):
            setattr(trainer, name, self._timed(name, getattr(trainer, name)))
        if trainer.rollout_func is not None:
            trainer.rollout_func = self._timed("_generate_single_turn", trainer.rollout_func)

    def _timed(self, name: str, function):
        def timed(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
            return result

        return timed

    def of_a_step(self) -> dict[str, float]:
        self.seconds = {}
        start = time.process_time()
        self.trainer.train()
        whole = time.process_time() - start
        generate = self.seconds["_generate_single_turn"]
        rollout = self.seconds["_generate_and_score_completions"]
        return {"generate": generate, "score": rollout - generate, "train": whole - rollout, "step": whole}


def measure(ways: list[str], rounds: int, options: list[str]) -> dict:
    """Medians over the rounds, and the ratio of the whole step to stock TRL's with the same rollout engine."""
    parts = {way: Parts(make_trainer(way, options)) for way in ways}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            step = parts[way].of_a_step()
            print(number, way, {name: round(value, 2) for name, value in step.items()}, flush=True)
            if number:  # the first is for libraries and buffers
                found[way].append(step)
    result = {}
    for way, steps in found.items():
        result[way] = {f"{name}_s": statistics.median(step[name] for step in steps) for name in steps[0]}
        stock = STOCK["vLLM" if "vLLM" in way else "transformers"]
        for name, base in (("ratio_to_stock", stock), ("ratio_to_stock_transformers", STOCK["transformers"])):
            if base in found:
                pairs = zip(steps, found[base], strict=True)
                result[way][name] = statistics.median(ours["step"] / theirs["step"] for ours, theirs in pairs)
    return result


def measure_memory(way: str, options: list[str]) -> dict:
    """The most that the process had in memory, over loading and one step."""
    from bench.memory import resident_bytes

    trainer = make_trainer(way, options)
    loaded = resident_bytes("VmRSS")
    trainer.train()
    return {"way": way, "loaded_bytes": loaded, "peak_bytes": resident_bytes("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", choices=WAYS, help="one step of this way, and its memory")
    parser.add_argument("--output", type=Path, help="a JSON file")
    args, options = parser.parse_known_args()  # the rest are options of trainer.grpo

    from trainer.sampling import vllm_support

    vllm_support.prepare_environment(cpu=True)
    if args.memory:
        made = {"options": options, **measure_memory(args.memory, options)}
    else:
        made = {"options": options, "rounds": args.rounds, "ways": measure(args.ways, args.rounds, options)}
    print(json.dumps(made, indent=1))
    if args.output:
        args.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
