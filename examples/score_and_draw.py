"""Scoring responses that exist already, and drawing them: where in a text is the model unsure?

    python examples/score_and_draw.py                                     # two answers to one question
    python examples/score_and_draw.py --model M --responses FILE.jsonl    # rows {"question": ..., "response": ...}

In: a file of responses, from wherever. Out, in --output: the entropy of every token under the model (records-*.jsonl),
figures (PNG), and a page per model (HTML) on which every token is coloured by its entropy.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from trainer import evaluate, plots
from trainer.experiment.warm_start import WarmStartSettings, warm_start
from trainer.records.record_files import read_records
from trainer.tiny.problems import draw_problems, draw_response


def write_responses(path: Path) -> Path:
    """One question, two right answers: the first explores, the second does not."""
    problem = draw_problems(1, seed=3, held_out=True)[0]
    rng = random.Random(0)
    answers = sorted({draw_response(rng, problem, "explore") for _ in range(20)}, key=len)
    rows = [
        {"id": "long", "question": problem.question, "response": answers[-1], "ground_truth": str(problem.answer)},
        {"id": "short", "question": problem.question, "response": answers[0], "ground_truth": str(problem.answer)},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or hub name; default: the embedded model, taught to overthink")
    parser.add_argument("--responses", help="a jsonl file; default: two answers made on the spot")
    parser.add_argument("--output", type=Path, default=Path("runs/score_and_draw"), help="default: runs/score_and_draw")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)

    model = args.model or str(warm_start(WarmStartSettings(steps=300)))
    responses = args.responses or write_responses(args.output / "responses.jsonl")

    # Each of these is a command too: python -m trainer.evaluate --model ... --score ... --output ...
    words = ["--model", model, "--score", str(responses), "--output", str(args.output), "--temperature", "1"]
    if evaluate.main([*words, "--system_prompt", ""]):
        raise SystemExit(f"the responses of {responses} could not be scored")
    drawn = ["--output", str(args.output / "figures"), "--format", "png"]
    plots.main(plots.parser().parse_args([str(args.output), *drawn]))

    for record in read_records(args.output):
        tokens, teca, right = record["response_length"], record["teca"][-1], record["is_correct"]
        print(f"{record['id']}: {tokens} tokens, TECA {teca:.3f} nats, right: {right}")
    return args.output


if __name__ == "__main__":
    main()
