"""Entropies of an evaluation by vLLM: from decoding, and by scoring the finished texts. How long, and how far apart.

    python -m bench.with_vllm.evaluation --model smollm2 --dtype bfloat16 --output FILE

    decoding     trainer/evaluation/engine_vllm.py as it is
    scoring      the same engine without our processor, then a pass of the model in transformers over what it wrote
                 (trainer/evaluation/scoring.py, 8 at a time as `trainer.evaluate --score` does)

CPU seconds on one thread, the ways in turn, medians over the rounds; loading is left out. The responses are to problems
of arithmetic.mixed under the prompt count_and_check, each at most --tokens long. The entropies of the two ways belong
to the same tokens: their difference is what decoding and teacher forcing round otherwise, per token and of TECA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

SCORED_AT_ONCE = 8


def differences(decoded: list[list[float]], scored: list[list[float]]) -> dict[str, float]:
    """Of entropies per token, and of their means over each response; nats."""
    tokens = sorted(
        abs(a - b) for one, other in zip(decoded, scored, strict=True) for a, b in zip(one, other, strict=True)
    )
    teca = [abs(statistics.fmean(a) - statistics.fmean(b)) for a, b in zip(decoded, scored, strict=True)]
    return {
        "tokens": len(tokens),
        "token_mean": statistics.fmean(tokens),
        "token_p99": tokens[int(0.99 * (len(tokens) - 1))],
        "token_max": tokens[-1],
        "teca_mean": statistics.fmean(teca),
        "teca_max": max(teca),
    }


def measure(model: str, *, dtype: str, requests: int, tokens: int, rounds: int) -> dict:
    import torch
    from transformers import AutoTokenizer

    from trainer.datasets import load_problems
    from trainer.evaluation import loading
    from trainer.evaluation.requests import Request, Sampling
    from trainer.evaluation.scoring import Scorer
    from trainer.prompts.prompt import read_prompt

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    problems = load_problems(
        "arithmetic.mixed", split="test", prompt=read_prompt("count_and_check"), max_samples=requests
    )
    asked = []
    for number, messages in enumerate(problems["prompt"]):
        made = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        asked.append(Request(tuple(made["input_ids"]), number))
    source = loading.ModelSource(model, None, None, dtype, "cpu")
    sampling = Sampling(temperature=0.8, top_p=1.0, max_new_tokens=tokens)
    longest = max(len(request.prompt_ids) for request in asked)
    engine = loading.load_engine(
        "vllm",
        source,
        sampling,
        tokenizer,
        longest_prompt=longest,
        batch_size=requests,
        gpu_memory_utilization=0.5,
        seed=0,
    )
    worker = engine.llm.llm_engine.model_executor.driver_worker
    processors = worker.model_runner.input_batch.logitsprocs.non_argmax_invariant
    (ours,) = (one for one in processors if hasattr(one, "take"))
    scorer = Scorer(loading.load_model(source), temperature=sampling.temperature)

    def by_decoding() -> list[tuple[list[int], list[float]]]:
        return [(response.token_ids, response.entropies) for response in engine.generate(asked)]

    def by_scoring() -> list[tuple[list[int], list[float]]]:
        processors.remove(ours)
        params = [engine._params(0, request) for request in asked]
        for one in params:
            one.extra_args = None
        given = [{"prompt_token_ids": list(request.prompt_ids)} for request in asked]
        written = [list(o.outputs[0].token_ids) for o in engine.llm.generate(given, params, use_tqdm=False)]
        processors.append(ours)
        entropies = []
        for first in range(0, len(asked), SCORED_AT_ONCE):
            part = slice(first, first + SCORED_AT_ONCE)
            pairs = zip(asked[part], written[part], strict=True)
            entropies += scorer.entropies([(request.prompt_ids, tokens) for request, tokens in pairs])
        return list(zip(written, entropies, strict=True))

    ways = {"decoding": by_decoding, "scoring": by_scoring}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        results = {}
        for way in sorted(ways, reverse=number % 2 == 1):
            start = time.process_time()
            results[way] = ways[way]()
            if number:  # the first is for libraries, buffers, and the cache of prefixes
                seconds[way].append(time.process_time() - start)
        assert [t for t, _ in results["decoding"]] == [t for t, _ in results["scoring"]]  # drawn with the same seeds
    made = {"threads": torch.get_num_threads()}
    made |= {f"{way}_s": statistics.median(values) for way, values in seconds.items()}
    pairs = list(zip(seconds["scoring"], seconds["decoding"], strict=True))
    made["scoring_over_decoding"] = statistics.median(scoring / decoding for scoring, decoding in pairs)
    entropies = [[e for _, e in results[way]] for way in ("decoding", "scoring")]
    return made | {"differences": differences(*entropies)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="smollm2", help="as trainer.evaluate takes it")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()

    from trainer.models.names import resolve
    from trainer.sampling import vllm_support

    vllm_support.prepare_environment(cpu=True)
    settings = {"dtype": args.dtype, "requests": args.requests, "tokens": args.tokens, "rounds": args.rounds}
    made = {"model": args.model, **settings, **measure(resolve(args.model), **settings)}
    print(json.dumps(made, indent=1))
    if args.output:
        args.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
