"""What recording entropies costs vLLM while it decodes: `python -m bench.with_vllm.decoding_overhead --model smollm2`.

One engine in this process, and the same requests in turn in four ways:

    plain       our processor taken out of the engine
    loaded      the processor is there, the requests carry nothing for it
    teca        every request's entropies are recorded, taken and matched to its tokens
    teca, rule  and an early exit is decided at every token (a threshold that is never met)

Seconds are those of the CPU (one thread: OMP_NUM_THREADS=1), so that a busy machine lengthens them little; each round
runs every way once, from another one on. Out: medians over the rounds of seconds a decoding step, and of the ratio to
plain within a round; and what the processor itself took, by a clock around its calls, as a share of the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

WAYS = ("plain", "loaded", "teca", "teca, rule")


class Clock:
    """CPU seconds spent in calls of methods that it is put around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, owner: object, name: str) -> None:
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.process_time()
            result = inner(*args, **kwargs)
            self.seconds += time.process_time() - start
            return result

        setattr(owner, name, timed)


def measure(model: str, *, dtype: str, batch: int, tokens: int, rounds: int) -> dict:
    """Every way in turn; see this file's header."""
    import torch
    from vllm import LLM, SamplingParams

    from trainer.sampling.early_exit import EarlyExit
    from trainer.sampling.teca_processor import take_entropies
    from trainer.sampling.teca_requests import decoded, request_arguments
    from trainer.sampling.vllm_processors import engine_options

    llm = LLM(
        model=model,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=tokens + 16,
        max_num_seqs=batch,
        seed=0,
        disable_log_stats=True,
        enable_prefix_caching=False,
        **engine_options(),
    )
    processors = llm.llm_engine.model_executor.driver_worker.model_runner.input_batch.logitsprocs.non_argmax_invariant
    (ours,) = (one for one in processors if hasattr(one, "take"))
    clock = Clock()
    for name in ("update_state", "apply"):
        clock.around(ours, name)
    never = EarlyExit(1e-9, (5, 6), (7,), 4, 16)
    prompts = [{"prompt_token_ids": [7 + i % 40, 20, 9 + i % 30, 44]} for i in range(batch)]

    def run(way: str, seed: int) -> tuple[float, float]:
        """(CPU seconds, of which in the processor and in taking what it kept)."""
        recorded = way.startswith("teca")
        keys = [seed * batch + i for i in range(batch)]
        rule = never if way.endswith("rule") else None
        params = [
            SamplingParams(
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args=request_arguments(key=key, rule=rule) if recorded else None,
            )
            for key in keys
        ]
        (processors.remove if way == "plain" else lambda one: None)(ours)
        torch.manual_seed(seed)
        clock.seconds, start = 0.0, time.process_time()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        taking = time.process_time()
        if recorded:
            for key, records, output in zip(keys, take_entropies(llm, keys), outputs, strict=True):
                assert len(decoded(records, output.outputs[0].token_ids, key).entropies) == tokens
        end = time.process_time()
        if way == "plain":
            processors.append(ours)
        return end - start, clock.seconds + end - taking

    for way in WAYS:
        run(way, 0)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(1, rounds + 1):
        for way in WAYS[number % 4 :] + WAYS[: number % 4]:
            total, own = run(way, number)
            seconds[way].append(total)
            shares[way].append(own / (total - own))
    return {
        way: {
            "step_ms": 1e3 * statistics.median(seconds[way]) / tokens,
            "ratio_to_plain": statistics.median(a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)),
            "processor_share": statistics.median(shares[way]),
        }
        for way in WAYS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="smollm2", help="as trainer.evaluate takes it")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=64, help="requests decoded at once (default: 64)")
    parser.add_argument("--tokens", type=int, default=32, help="of each response (default: 32)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()

    from trainer.models.names import resolve
    from trainer.sampling import vllm_support

    vllm_support.prepare_environment(cpu=True)
    import torch

    found = measure(resolve(args.model), dtype=args.dtype, batch=args.batch, tokens=args.tokens, rounds=args.rounds)
    made = {"model": args.model, "dtype": args.dtype, "batch": args.batch, "tokens": args.tokens, "rounds": args.rounds}
    made |= {"threads": torch.get_num_threads(), "ways": found}
    print(json.dumps(made, indent=1))
    if args.output:
        args.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
