"""What the scaling model says of 1, 2 and 4 processes on a CPU, beside what they do: `python -m bench.scaling_on_cpu`.

In: nothing but this machine. Out: JSON, the bytes of every collective of a step as torch's profiler saw them, and CPU
seconds a step and process, measured and predicted:

    predicted(R) = step without DDP + what DDP costs one process + (seconds a byte) * 2 (R - 1) / R * bytes

CPU seconds, because processes that share a few cores with others' work can't be timed by the clock: where the cores are
busy, the clock runs with them. What DDP costs by itself (copies to and from its buckets) is measured on one process,
and what a byte costs on two, with nothing but the all_reduce.

A step is forward and backward of a small Qwen3 under DDP; gradients in float32, the same tokens in every process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bench.machine import cpu_name
from bench.scaling import Model, all_reduce_bytes

SMALL = Model("small", 2, 128, 4, 2, 32, 256, 8192, True)
TOKENS = (4, 64)  # responses, tokens
ROUNDS = 7
_COLLECTIVES = {"c10d::_allgather_base_": "all_gather", "c10d::_reduce_scatter_base_": "reduce_scatter"}


def make_model(model: Model) -> torch.nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        intermediate_size=model.mlp_width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.key_value_heads,
        head_dim=model.head_width,
        tie_word_embeddings=model.tied,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def step_of(model: torch.nn.Module, vocabulary: int, tokens: tuple[int, int] = TOKENS) -> Callable[[], None]:
    ids = torch.randint(vocabulary, tokens)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()

    return step


def collectives_of(step: Callable[[], None]) -> dict[str, tuple[int, int]]:
    """Of one call: (how many, numbers handed in) of each kind of collective."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        step()
    counts: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for event in seen.events() or ():
        kind = _COLLECTIVES.get(event.name)
        if kind is not None:
            counts[kind] += 1
            numbers[kind] += torch.Size(event.input_shapes[1]).numel()  # an output, an input
    return {kind: (counts[kind], numbers[kind]) for kind in sorted(counts)}


def cpu_seconds(calls: dict[str, Callable[[], None]], rounds: int = ROUNDS) -> dict[str, float]:
    """Medians over interleaved rounds, of this process alone."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(each) for name, each in times.items()}


def under_ddp(rank: int, ranks: int, rounds: int) -> dict[str, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    wrapped = torch.nn.parallel.DistributedDataParallel(make_model(SMALL))
    buckets: list[int] = []

    def counted(state, bucket):  # DDP looks at annotations, and wants them to be types
        buckets.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(dist.group.WORLD, bucket)  # what DDP does without a hook

    wrapped.register_comm_hook(None, counted)
    step = step_of(wrapped, SMALL.vocabulary)
    step()  # DDP settles its buckets in the first
    buckets.clear()
    step()
    reduced = sum(buckets)
    message = torch.zeros(SMALL.parameters)
    calls = {
        "alone": step_of(make_model(SMALL), SMALL.vocabulary),
        "step": step,
        "message": lambda: dist.all_reduce(message),
    }
    return {"reduced_bytes": reduced, "seconds": cpu_seconds(calls, rounds)}


def under_fsdp2(rank: int, ranks: int, checkpointing: bool = False, trained: bool = True) -> dict[str, Any]:
    """A group for each layer and one for the rest, as accelerate makes them for the recipe."""
    from torch.distributed.fsdp import fully_shard

    tiny = Model("tiny", 3, 16, 2, 1, 8, 32, 64, True)
    model: Any = make_model(tiny)
    model.train()
    if not trained:
        model.requires_grad_(False)
        model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=True)
    fully_shard(model, reshard_after_forward=True)
    return {"collectives": collectives_of(step_of(model, tiny.vocabulary, (1, 8))), "model": tuple(tiny)}


def _serve(rank: int, ranks: int, port: int, program: Callable[..., Any], arguments: dict, answers: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    answers.put((rank, program(rank, ranks, **arguments)))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(ranks: int, program: Callable[..., Any], **arguments: Any) -> list[Any]:
    """What program(rank, ranks, ...) returned in each of so many new processes (gloo, one thread each)."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        context.Process(target=_serve, args=(rank, ranks, port, program, arguments, answers), daemon=True)
        for rank in range(ranks)
    ]
    for process in started:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < ranks:
            try:
                rank, answer = answers.get(timeout=1)
            except queue.Empty:
                if any(process.exitcode for process in started):
                    raise RuntimeError("a process failed; its own last lines say why") from None
            else:
                found[rank] = answer
        for process in started:
            process.join()
        return [found[rank] for rank in range(ranks)]
    finally:
        for process in started:
            process.kill()


class Seconds(NamedTuple):
    """CPU seconds of a process: its step without DDP, under DDP, and an all_reduce of all gradients; interleaved."""

    alone: float
    step: float
    message: float


def held_together(measured: dict[int, Seconds]) -> dict[int, dict[str, float]]:
    """Measured and predicted by number of processes.

    `alone` is taken from the same minutes: processes that share caches with each other and with other work slow down.
    """
    ddp = measured[1].step - measured[1].alone
    a_byte = measured[2].message / all_reduce_bytes(SMALL.parameters, 2)
    rows = {}
    for ranks, found in measured.items():
        predicted = found.alone + ddp + a_byte * all_reduce_bytes(SMALL.parameters, ranks)
        rows[ranks] = {
            "cpu_s_alone": found.alone,
            "cpu_s_measured": found.step,
            "cpu_s_predicted": predicted,
            "efficiency_measured": found.alone / found.step,
            "efficiency_predicted": found.alone / predicted,
        }
    return rows


def compare(rounds: int = ROUNDS) -> dict[str, Any]:
    """Runs 1, 2 and 4 processes; see this file's header."""
    answers = {ranks: on_ranks(ranks, under_ddp, rounds=rounds) for ranks in (1, 2, 4)}
    measured = {
        ranks: Seconds(*(statistics.mean(one["seconds"][name] for one in each) for name in Seconds._fields))
        for ranks, each in answers.items()
    }
    return {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "parameters": SMALL.parameters,
        "tokens": TOKENS,
        "reduced_bytes": {ranks: each[0]["reduced_bytes"] for ranks, each in answers.items()},
        "ranks": held_together(measured),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(json.dumps(compare(), indent=1))


if __name__ == "__main__":
    main()
