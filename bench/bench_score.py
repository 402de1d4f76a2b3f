"""Scoring long responses: peak memory and time of trainer.evaluation.scoring beside the plain way.

    python -m bench.bench_score --json bench/results/score-cpu.json

A small body with the real vocabulary of Qwen3, so that the head is measured and not the body:

    scorer        trainer.evaluation.scoring.Scorer: chunks through the body, folded logits
    plain         one forward, all logits; log_softmax and -(p log p).sum(-1) in float32
    plain, rows   the same forward, softmax and sum for one position at a time: what careful scripts do

Memory: each measurement is a process of its own; extra memory is the peak of its resident set (Linux, VmHWM) above
what it was after loading and a first short call. The plain way holds L * V * 4 bytes three times: logits,
log-probabilities and their product.
Time: all ways in one process at a length where plain fits, interleaved, after their results were compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

from bench.memory import forget_peak, resident_bytes

VOCABULARY = 151936
HIDDEN = 256
PROMPT = 64
LENGTHS = (1024, 4096, 16384)
FITS_PLAIN = 1024  # tokens: 0.6 GB for each (L, V)
ROUNDS = 3
TOLERANCE = 1e-4  # nats of about 11; plain sums 151936 float32 terms


def build():
    """A Qwen3 with a small body, float32, and nothing trained."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    return Qwen3ForCausalLM(config).eval()


def plain(model, prompt: list[int], response: list[int]) -> list[float]:
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        log_p = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
        return (-(log_p.exp() * log_p).sum(-1)).tolist()


def plain_rows(model, prompt: list[int], response: list[int]) -> list[float]:
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        found = []
        for row in logits[len(prompt) - 1 : -1]:
            log_p = row.float().log_softmax(-1)
            found.append(-(log_p.exp() * log_p).sum().item())
        return found


def ways(length: int) -> dict:
    """name -> call that scores one response of `length` tokens."""
    import torch

    from trainer.evaluation.scoring import Scorer

    model = build()
    ids = torch.randint(VOCABULARY, (PROMPT + length,), generator=torch.Generator().manual_seed(1)).tolist()
    prompt, response = ids[:PROMPT], ids[PROMPT:]
    scorer = Scorer(model, temperature=1.0)
    scorer.entropies([(prompt[:2], response[:2])])  # what is loaded at first use is not the response's
    return {
        "scorer": lambda: scorer.entropies([(prompt, response)])[0],
        "plain": lambda: plain(model, prompt, response),
        "plain, rows": lambda: plain_rows(model, prompt, response),
    }


def measure_memory(way: str, length: int) -> dict:
    run = ways(length)[way]
    forget_peak()  # that of building the model is not the response's
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    entropies = run()
    seconds = time.perf_counter() - start
    peak = resident_bytes("VmHWM")
    if len(entropies) != length:
        raise RuntimeError(f"{way}: {len(entropies)} entropies for {length} tokens")
    return {
        "way": way,
        "length": length,
        "extra_bytes": peak - before,
        "peak_bytes": peak,
        "plain_needs_bytes": 3 * length * VOCABULARY * 4,
        "seconds_once": seconds,
    }


def measure_time(length: int, rounds: int) -> dict:
    import torch

    from bench.timing import interleave

    runs = ways(length)
    results = {name: run() for name, run in runs.items()}  # warm-up and comparison
    difference = max(abs(a - b) for a, b in zip(results["scorer"], results["plain"], strict=True))
    if not difference < TOLERANCE:
        raise RuntimeError(f"scorer and plain differ by {difference:.2e} nats: there is nothing to time")
    timings, failures = interleave(runs, torch.device("cpu"), rounds)
    if failures:
        raise RuntimeError(f"did not run: {failures}")
    medians = {name: timing.median_s for name, timing in timings.items()}
    return {
        "length": length,
        "largest_difference_nats": difference,
        "seconds": medians,
        "seconds_each": {name: timing.each_s for name, timing in timings.items()},
        "fastest": {
            name: timing.each_s[0] for name, timing in timings.items()
        },  # the round least disturbed by other processes
        "ratio_to_scorer": {name: median / medians["scorer"] for name, median in medians.items()},
    }


def in_own_process(*call: object) -> dict:
    command = [sys.executable, "-m", "bench.bench_score", "--one", *map(str, call)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def tables(memory: list[dict], timed: dict) -> str:
    lines = ["| response tokens | way | extra memory, GB | three (L, V) float32, GB |", "|---|---|---|---|"]
    lines += [
        f"| {m['length']} | {m['way']} | {m['extra_bytes'] / 1e9:.2f} | {m['plain_needs_bytes'] / 1e9:.2f} |"
        for m in memory
    ]
    lines += ["", f"| way, {timed['length']} tokens | seconds, median | ratio | fastest |", "|---|---|---|---|"]
    lines += [
        f"| {way} | {seconds:.2f} | {timed['ratio_to_scorer'][way]:.2f} | {timed['fastest'][way]:.2f} |"
        for way, seconds in timed["seconds"].items()
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=LENGTHS, help="response lengths of the scorer's memory"
    )
    parser.add_argument("--plain_length", type=int, default=FITS_PLAIN, help="length at which all ways are measured")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"interleaved timed rounds (default: {ROUNDS})")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        kind, *call = arguments.one
        found = measure_time(*map(int, call)) if kind == "time" else measure_memory(call[0], int(call[1]))
        print(json.dumps(found))
        return

    import torch
    import transformers

    memory = [in_own_process("memory", "scorer", length) for length in arguments.lengths]
    memory += [in_own_process("memory", way, arguments.plain_length) for way in ("plain", "plain, rows")]
    timed = in_own_process("time", arguments.plain_length, arguments.rounds)
    print(tables(memory, timed))
    if arguments.json:
        content = {
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
            "shape": {"vocabulary": VOCABULARY, "hidden": HIDDEN, "prompt": PROMPT, "dtype": "float32"},
            "memory": memory,
            "time": timed,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
