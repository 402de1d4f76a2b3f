"""One optimisation step of CERTrainer, in both head modes, beside stock TRL's GRPOTrainer: seconds, and peak memory.

A tiny body under the real vocabulary of Qwen3 (151936 tokens), so that the head takes nearly all of a step. Completions
have one length, and nothing is generated. A step is loss, backward and the optimizer's update. The body alone is timed
beside it: head time is step minus body.

    pytest bench/bench_trainer_step.py --benchmark-json=FILE        python -m bench.table FILE
    python -m bench.bench_trainer_step [--rounds 5]

The second command is for a busy CPU: seconds of the processor that this process was given, medians of interleaved
rounds, as a table.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig

from bench.comparison import compare
from bench.memory import forget_peak, resident_bytes
from bench.records import OURS
from trainer.cer_trainer import CERTrainer

ONE_PASS = f"{OURS}, one pass"
TRAINERS = {
    OURS: functools.partial(CERTrainer, head_mode="two_pass"),
    ONE_PASS: functools.partial(CERTrainer, head_mode="one_pass"),
    "TRL": trl.GRPOTrainer,
}
DTYPES = ["float32", "bfloat16"]


class Step(NamedTuple):
    """What one step trains on."""

    completions: int
    prompt_length: int
    completion_length: int
    width: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        return self.completions * self.completion_length


SIZES = {
    ("full", "cpu"): {"512 tokens": Step(2, 32, 512, 256, 151936), "2048 tokens": Step(2, 32, 2048, 256, 151936)},
    ("full", "cuda"): {"512 tokens": Step(8, 256, 512, 1024, 151936), "2048 tokens": Step(8, 256, 2048, 1024, 151936)},
    ("smoke", "cpu"): {"512 tokens": Step(2, 4, 12, 32, 3001), "2048 tokens": Step(2, 4, 48, 32, 3001)},
    ("smoke", "cuda"): {"512 tokens": Step(2, 4, 12, 32, 3001), "2048 tokens": Step(2, 4, 48, 32, 3001)},
}
LENGTHS = ["512 tokens", "2048 tokens"]  # of a completion


def make_trainer(name: str, shape: Step, tuning: str, dtype: str, device: str, output_dir: str):
    """A trainer with a random model; the same weights for every name."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=shape.width // 4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    arguments = GRPOConfig(
        output_dir=output_dir,
        use_cpu=device == "cpu",
        bf16=False,
        report_to="none",
        per_device_train_batch_size=shape.completions,
        num_generations=shape.completions,
        max_completion_length=shape.completion_length,
        gradient_checkpointing=False,
        temperature=1.5,
    )
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"]) if tuning == "lora" else None
    trainer = TRAINERS[name](
        model,
        lambda completions, **kwargs: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["<unk>"]}),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.current_gradient_accumulation_steps = 1  # what Trainer's loop sets before it asks for a loss
    trainer.model.train()
    return trainer


def make_batch(shape: Step, device: torch.device) -> dict[str, torch.Tensor]:
    """What TRL hands to its loss after generation: two groups' worth of random tokens and advantages."""
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(3, shape.vocabulary, (shape.completions, length), generator=generator).to(device)

    prompt_ids, completion_ids = tokens(shape.prompt_length), tokens(shape.completion_length)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": completion_ids,
        "completion_mask": torch.ones_like(completion_ids),
        "advantages": torch.linspace(-1, 1, shape.completions, device=device),
        "num_items_in_batch": torch.tensor(shape.tokens, device=device),
    }


def make_step(trainer, batch: dict[str, torch.Tensor]):
    """One optimisation step; the rate is too small to change what the next one does."""
    optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-12)

    def step() -> None:
        trainer.compute_loss(trainer.model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_body(trainer, batch: dict[str, torch.Tensor]):
    """The same step without a head: the backbone forward, and backward from a sum of its hidden states."""
    input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    model = trainer.model
    backbone = (model.get_base_model() if hasattr(model, "peft_config") else model).model

    def body() -> None:
        backbone(input_ids=input_ids, use_cache=False).last_hidden_state.float().sum().backward()
        model.zero_grad()

    return body


def assert_same_step(ours, theirs, batch: dict[str, torch.Tensor], dtype: str) -> None:
    """Loss and every gradient of the two trainers, before anything is timed."""
    tolerance = 1e-4 if dtype == "float32" else 5e-2  # TRL rounds logits to bfloat16
    gradients = []
    for trainer in (ours, theirs):
        loss = trainer.compute_loss(trainer.model, batch)
        parameters = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(parameters.values()))
        gradients.append({"loss": loss.detach(), **dict(zip(parameters, found, strict=True))})
    for name, expected in gradients[1].items():
        error = (gradients[0][name].double() - expected.double()).norm()
        scale = max(expected.double().norm().item(), 1e-3)
        assert error <= tolerance * scale, f"{name}: error {error:.2e} of {scale:.2e}"


def peak_bytes(name: str, shape: Step, tuning: str, dtype: str, device: str, output_dir: str) -> int:
    """Memory that one step adds at its peak, measured in a process of its own (CPU: resident set; CUDA: allocated)."""
    arguments = json.dumps([name, shape, tuning, dtype, device, output_dir])
    command = [sys.executable, "-m", "bench.bench_trainer_step", "--peak", arguments]
    root = Path(__file__).resolve().parent.parent
    return int(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def measure_peak(name: str, shape: Step, tuning: str, dtype: str, device: str, output_dir: str) -> int:
    trainer = make_trainer(name, shape, tuning, dtype, device, output_dir)
    small = shape._replace(prompt_length=2, completion_length=2)
    make_step(trainer, make_batch(small, torch.device(device)))()  # libraries loaded, threads and buffers made
    step = make_step(trainer, make_batch(shape, torch.device(device)))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    forget_peak()
    before = resident_bytes("VmRSS")
    step()
    return resident_bytes("VmHWM") - before


def make_steps(settings: tuple, device: torch.device) -> tuple[dict[str, Callable[[], None]], Callable[[], None]]:
    """A step by trainer, each checked against stock TRL's, and the body alone."""
    shape, _, dtype, *_ = settings
    trainers = {name: make_trainer(name, *settings) for name in TRAINERS}
    batch = make_batch(shape, device)
    for name in (OURS, ONE_PASS):
        assert_same_step(trainers[name], trainers["TRL"], batch, dtype)
    return {name: make_step(trainer, batch) for name, trainer in trainers.items()}, make_body(trainers[OURS], batch)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def bench_step(benchmark, tuning, dtype, length, size, device, rounds, tmp_path):
    benchmark.group = f"one GRPO step, {'full fine-tuning' if tuning == 'full' else 'LoRA (frozen head)'}"
    shape = SIZES[size, device.type][length]
    settings = (shape, tuning, dtype, device.type, str(tmp_path))
    steps, body_alone = make_steps(settings, device)
    compare(
        benchmark,
        steps.pop(OURS),
        {**steps, "limit: the body alone": body_alone},
        device=device,
        rounds=rounds,
        physical={"flops": (8 if tuning == "full" else 6) * shape.tokens * shape.width * shape.vocabulary},
    )
    del steps, body_alone
    peaks = {name: peak_bytes(name, *settings) for name in TRAINERS}
    found = benchmark.extra_info
    body = found["peers_s"]["limit: the body alone"]
    head_ratio = (found["peers_s"]["TRL"] - body) / (found["median_s"] - body)
    found.update(shape=shape._asdict(), step_peak_bytes=peaks, head_ratio=head_ratio)


def processor_seconds(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Medians over interleaved rounds, after one that does not count."""
    each: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            each[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in each.items()}


def print_table(size: str, rounds: int) -> None:
    print("| case | trainer | processor seconds | head: TRL's over this | memory added |\n|---|---|---:|---:|---:|")
    for tuning in ("lora", "full"):
        for dtype in DTYPES:
            for length, shape in SIZES[size, "cpu"].items():
                with tempfile.TemporaryDirectory() as folder:
                    settings = (shape, tuning, dtype, "cpu", folder)
                    steps, body_alone = make_steps(settings, torch.device("cpu"))
                    found = processor_seconds({**steps, "body": body_alone}, rounds)
                    del steps, body_alone
                    heads = {name: found[name] - found["body"] for name in TRAINERS}
                    for name in TRAINERS:
                        peak = peak_bytes(name, *settings) / 2**20
                        print(
                            f"| {tuning}, {dtype}, {shape.completions} x {length} | {name} | {found[name]:.2f} | "
                            f"{heads['TRL'] / heads[name]:.2f}x | {peak:.0f} MiB |",
                            flush=True,
                        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=("full", "smoke"), default="full")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        trainer_name, step_shape, *rest = json.loads(options.peak)
        print(measure_peak(trainer_name, Step(*step_shape), *rest))
    else:
        print_table(options.size, options.rounds)
