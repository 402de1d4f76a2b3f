"""How a GRPO step scales over processes: `python -m bench.scaling [--tokens_per_second X]`.

A model, not a measurement, of training alone (rollouts are made elsewhere): what a process computes, what it sends, and
how long it waits for the slowest. Weak scaling: every process keeps its tokens, the step grows.

    compute   tokens * FLOPs per token / (peak * MFU),     or tokens / (tokens per second of one process, measured)
    messages  FSDP2, a pass:  (R - 1) / R * bytes of all weights, gathered;  a step: the gradients, reduced
              DDP, a step:    2 (R - 1) / R * bytes of the gradients
    exposed   max(0, messages / bandwidth - OVERLAP * compute) + latency of each collective
    waiting   E[longest of R] of the tokens between two collectives, less their mean

    efficiency(R) = compute / (compute + exposed + waiting)

The constants below are assumptions until somebody measures them; every one is named, with where it comes from. What is
held to a measurement on every machine are the message sizes, byte for byte, and the efficiency of 1, 2 and 4 processes
on a CPU (bench/scaling_on_cpu.py, tests/bench/test_scaling.py).
"""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist
from typing import NamedTuple

GPUS_PER_NODE = 8
# H100 SXM: NVIDIA's data sheet, dense bfloat16, and NVLink 4 in one direction.
PEAK_FLOPS = 989e12
NVLINK_BYTES_PER_S = 450e9
MEMORY_BYTES = 80e9
# DGX H100: one ConnectX-7 of 400 Gbit/s a GPU.
NETWORK_BYTES_PER_S = 50e9
BANDWIDTH_REACHED = 0.8  # assumed, of either link, for messages of tens of MB: what NCCL's tests usually show
MFU = 0.4  # assumed; --tokens_per_second replaces it
OVERLAP = 0.8  # assumed: the share of computing beside which FSDP2's prefetch can hide messages
LATENCY_S = {"nvlink": 20e-6, "network": 60e-6}  # assumed, of a collective
# Assumed: standard deviation over mean of a response's length. GRPO's responses to one prompt differ by about as much.
LENGTH_SPREAD = 0.5

TRAIN_PASSES = 1  # forward and backward
SCORING_PASSES = 2  # forward: TRL's old log-probabilities, with TECA; the reference
RESPONSES_PER_PASS, PASSES_PER_STEP, TOKENS_PER_RESPONSE = (
    4,
    2,
    1500,
)  # recipe qwen3_4b_gsm8k on 8 GPUs; about 1500 tokens


class Model(NamedTuple):
    """A dense decoder as Qwen3's configurations on the hub give it."""

    name: str
    layers: int
    width: int
    heads: int
    key_value_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        queries, keys = self.heads * self.head_width, self.key_value_heads * self.head_width
        norms = 2 * self.width + 2 * self.head_width
        return 2 * self.width * queries + 2 * self.width * keys + 3 * self.width * self.mlp_width + norms

    @property
    def root_parameters(self) -> int:
        """Embedding, last norm, and the head where it is another matrix."""
        return self.vocabulary * self.width * (1 if self.tied else 2) + self.width

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.root_parameters

    def lora_parameters(self, rank: int = 64) -> int:
        """Of adapters on all linear maps of the layers, as the recipes have them."""
        queries, keys = self.heads * self.head_width, self.key_value_heads * self.head_width
        ends = 2 * (self.width + queries) + 2 * (self.width + keys) + 3 * (self.width + self.mlp_width)
        return self.layers * rank * ends


QWEN3 = (
    Model("Qwen3-4B", 36, 2560, 32, 8, 128, 9728, 151936, True),
    Model("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936, False),
    Model("Qwen3-32B", 64, 5120, 64, 8, 128, 25600, 151936, False),
)


# ---------------------------------------------------------------------------------------------------------- messages


def all_reduce_bytes(numbers: int, ranks: int, bytes_each: int = 4) -> float:
    """What each of the ranks sends in a ring: a reduce-scatter and an all-gather."""
    return 2 * (ranks - 1) / ranks * numbers * bytes_each


def gather_bytes(numbers: int, ranks: int, bytes_each: int) -> float:
    """What each receives of a matrix of so many numbers that is spread over the ranks; as much for a reduce-scatter."""
    return (ranks - 1) / ranks * numbers * bytes_each


class Messages(NamedTuple):
    """Numbers (not bytes) that are gathered and reduced in a step, and in how many collectives at most."""

    gathered: int
    reduced: int
    collectives: int


def fsdp2_messages(model: Model, *, trained: int, train_passes: int, scoring_passes: int) -> Messages:
    """FSDP2 with a group for each layer and one for the rest, as the recipe wraps; gradients reduced in every pass.

    A forward gathers every group, and a backward again, as they are freed between. Gradient checkpointing adds nothing:
    a layer is whole while it is recomputed.
    """
    passes = 2 * train_passes + scoring_passes
    groups = model.layers + 1
    return Messages(passes * model.parameters, train_passes * trained, (passes + train_passes) * groups)


# --------------------------------------------------------------------------------------------------------------- time


def flops_per_token(model: Model, *, lora: bool, scoring_passes: int = SCORING_PASSES) -> float:
    """2 a weight forward, 2 again for gradient checkpointing, 2 for the gradient of states, 2 of weights if trained."""
    return model.parameters * (2 + 2 + 2 + (0 if lora else 2) + 2 * scoring_passes)


def longest_of(ranks: int, spread: float) -> float:
    """E[max] / mean of `ranks` normal numbers of a relative spread. Source: Blom's approximation."""
    return 1.0 if ranks == 1 else 1 + spread * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


class Prediction(NamedTuple):
    """Seconds of a step on every one of the ranks."""

    ranks: int
    compute_s: float
    messages_s: float
    exposed_s: float
    waiting_s: float

    @property
    def efficiency(self) -> float:
        return self.compute_s / (self.compute_s + self.exposed_s + self.waiting_s)


def predict(model: Model, ranks: int, *, lora: bool, tokens_per_second: float | None = None) -> Prediction:
    """A step of the recipe, FSDP2 over all ranks."""
    tokens = RESPONSES_PER_PASS * PASSES_PER_STEP * TOKENS_PER_RESPONSE
    compute = tokens / (tokens_per_second or PEAK_FLOPS * MFU / flops_per_token(model, lora=lora))
    trained = model.lora_parameters() if lora else model.parameters
    sent = fsdp2_messages(
        model,
        trained=trained,
        train_passes=TRAIN_PASSES * PASSES_PER_STEP,
        scoring_passes=SCORING_PASSES * PASSES_PER_STEP,
    )
    link = "nvlink" if ranks <= GPUS_PER_NODE else "network"
    bandwidth = BANDWIDTH_REACHED * (NVLINK_BYTES_PER_S if link == "nvlink" else NETWORK_BYTES_PER_S)
    # bfloat16 weights, float32 gradients
    size = gather_bytes(sent.gathered, ranks, 2) + gather_bytes(sent.reduced, ranks, 4)
    messages = size / bandwidth
    latency = sent.collectives * LATENCY_S[link] if ranks > 1 else 0.0
    exposed = max(0.0, messages - OVERLAP * compute) + (1 - OVERLAP) * latency
    waiting = compute * (longest_of(ranks, LENGTH_SPREAD / math.sqrt(RESPONSES_PER_PASS)) - 1)
    return Prediction(ranks, compute, messages, exposed, waiting)


# ------------------------------------------------------------------------------------------------------------- memory


def memory_bytes(model: Model, ranks: int, *, lora: bool) -> dict[str, float]:
    """What a GPU holds in training, FSDP2 over the ranks, gradient checkpointing."""
    tokens = RESPONSES_PER_PASS * 4608  # the recipe's longest
    queries = model.heads * model.head_width
    states = 16 * (model.lora_parameters() if lora else model.parameters)  # weight, gradient, two moments in float32
    return {
        "weights": 2 * model.parameters / ranks if lora else 0.0,  # frozen, bfloat16
        "trained": states / ranks,
        "gathered": 2 * (2 * model.layer_parameters + model.root_parameters) if ranks > 1 else 0.0,
        "activations": 2 * tokens * (model.layers * model.width + 3 * model.mlp_width + 4 * queries + 8 * model.width),
        "head": 0.5e9,
    }


# -------------------------------------------------------------------------------------------------------------- tables


def table(tokens_per_second: float | None = None) -> str:
    lines = [
        "| model | GPUs | memory LoRA / full, GB | messages, LoRA | efficiency | messages, full | efficiency |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for model in QWEN3:
        for ranks in (1, 8, 16, 32, 64):
            lora, full = (predict(model, ranks, lora=x, tokens_per_second=tokens_per_second) for x in (True, False))
            held = [sum(memory_bytes(model, ranks, lora=x).values()) for x in (True, False)]
            memory = " / ".join(f"{x / 1e9:.0f}" + ("" if x <= MEMORY_BYTES else " (!)") for x in held)
            cells = [f"{p.messages_s:.2f} s beside {p.compute_s:.2f} s | {p.efficiency:.2f}" for p in (lora, full)]
            lines.append(f"| {model.name} | {ranks} | {memory} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokens_per_second", type=float, help="Of one process, measured (log.jsonl), in place of the assumed MFU."
    )
    print(table(parser.parse_args(argv).tokens_per_second))


if __name__ == "__main__":
    main()
