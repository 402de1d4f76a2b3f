"""Supervised warm start of the embedded policy, and its cache.

In: settings.  Out: a directory with a model and tokenizer that transformers loads, made once and found again.

    loss = - mean over response tokens of log p(token),    log p from cer_ext.linear_logprobs_and_entropy

Matrices are trained by Muon, the rest by AdamW: AdamW alone did not reach useful accuracy in the same time. The
learning rate falls linearly to zero over the last half.

The cache key is a hash of everything the result depends on: the settings, the source of the files that make
problems, tokenizer and model, and the versions of torch and transformers. A directory appears in the cache by one
rename, so it is complete or absent.
"""

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from cer_ext import linear_logprobs_and_entropy
from trainer.console.progress_bar import ProgressBar
from trainer.storage.atomic import staged_directory, write_json
from trainer.storage.cache import default_cache_dir
from trainer.tiny import problems
from trainer.tiny.model import build_model
from trainer.tiny.tokenizer import load_tokenizer, word_tokenizer

_SOURCES = ("tiny/problems.py", "tiny/tokenizer.py", "tiny/model.py", "experiment/warm_start.py")


@dataclass(frozen=True)
class WarmStartSettings:
    """What the warm-started model depends on, besides the code."""

    design: str = "explore"  # one of problems.DESIGNS
    steps: int = 600
    batch_size: int = 32
    muon_learning_rate: float = 0.02  # matrices
    adamw_learning_rate: float = 3e-3  # embeddings and norms
    seed: int = 0

    def __post_init__(self):
        if self.design not in problems.DESIGNS:
            raise ValueError(f"design is {self.design!r}: expected one of {', '.join(problems.DESIGNS)}")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")


def cache_key(settings: WarmStartSettings) -> str:
    """A name that changes whenever the warm-started model could."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    digest.update(json.dumps([dataclasses.asdict(settings), versions], sort_keys=True).encode())
    return f"warm-start-{settings.design}-{digest.hexdigest()[:16]}"


def _encode(tokenizer: PreTrainedTokenizerBase, rng: random.Random, design: str, count: int) -> list[tuple]:
    """`count` fresh (prompt ids, response ids with the end token)."""
    drawn = [problems.draw_problem(rng, held_out=False) for _ in range(count)]
    prompts = tokenizer.apply_chat_template(
        [[{"role": "user", "content": problem.question}] for problem in drawn],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]
    responses = tokenizer([problems.draw_response(rng, problem, design) for problem in drawn])["input_ids"]
    return [(prompt, [*response, tokenizer.eos_token_id]) for prompt, response in zip(prompts, responses, strict=True)]


def _batches(tokenizer: PreTrainedTokenizerBase, rng: random.Random, settings: WarmStartSettings) -> Iterator[tuple]:
    """Endless batches, padded on the right: ids (B, L), and targets (B, L) that are -100 outside the response.

    Eight batches are drawn at once and cut by length, in random order: a third less padding to compute.
    """
    while True:
        rows = _encode(tokenizer, rng, settings.design, 8 * settings.batch_size)
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        starts = list(range(0, len(rows), settings.batch_size))
        rng.shuffle(starts)
        for start in starts:
            batch = rows[start : start + settings.batch_size]
            longest = len(batch[-1][0]) + len(batch[-1][1])
            ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
            targets = torch.full((len(batch), longest), -100)
            for row, (prompt, response) in enumerate(batch):
                ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
                # the token at position t is predicted from the hidden state at t - 1
                targets[row, len(prompt) - 1 : len(prompt) + len(response) - 1] = torch.tensor(response)
            yield ids, targets


def train(settings: WarmStartSettings) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerBase]:
    """Runs the warm start and returns model and tokenizer."""
    tokenizer = word_tokenizer()
    model = build_model(tokenizer, seed=settings.seed)
    rng = random.Random(f"warm start {settings.seed}")
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim != 2 or p is embedding]
    optimizers = (
        torch.optim.Muon(matrices, lr=settings.muon_learning_rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=settings.adamw_learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / settings.steps)))
        for optimizer in optimizers
    ]
    batches = _batches(tokenizer, rng, settings)
    model.train()
    bar = ProgressBar(range(settings.steps), desc=f"warm start ({settings.design})", unit="step", dynamic_ncols=True)
    for step in bar:
        ids, targets = next(batches)
        hidden = model.model(input_ids=ids).last_hidden_state  # (B, L, D); padding is on the right, causally unseen
        wanted = targets != -100
        logprobs, _ = linear_logprobs_and_entropy(
            hidden[wanted], model.lm_head.weight, targets[wanted], return_entropy=False
        )
        loss = -logprobs.mean()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 10 == 9:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    return model, tokenizer


def warm_start(settings: WarmStartSettings, cache_dir: str | Path | None = None) -> Path:
    """The directory of the warm-started model, from the cache or made now."""
    root = Path(cache_dir) if cache_dir else default_cache_dir()
    target = root / cache_key(settings)
    if (target / "config.json").is_file():
        return target
    if target.exists():
        shutil.rmtree(target)  # a model without its configuration: damaged from outside
    model, tokenizer = train(settings)
    try:
        with staged_directory(target) as staging:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            write_json(staging / "warm_start.json", dataclasses.asdict(settings))
    except FileExistsError:
        if not (target / "config.json").is_file():
            raise  # else another process was faster: its directory is as good
    return target


def load(path: str | Path) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerBase]:
    """Model (float32) and tokenizer (padding left) of a directory made by `warm_start`.

    The model's config keeps the directory as its `_name_or_path`: TRL reloads the reference policy from there.
    """
    model = Qwen3ForCausalLM.from_pretrained(str(path), dtype=torch.float32)
    return model, load_tokenizer(path)
