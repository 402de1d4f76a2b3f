"""Scoring of every response of a file that a directory lacks: options in, records out."""

from __future__ import annotations

import argparse

from trainer.catalogue.methods import methods
from trainer.evaluation import loading
from trainer.evaluation.loading import ModelSource
from trainer.evaluation.progress import Progress
from trainer.evaluation.prompts import prompt_to_ask
from trainer.evaluation.requests import Sampling
from trainer.evaluation.scoring import Scorer
from trainer.evaluation.scoring_input import ScoringRow, read_scoring_input
from trainer.models.names import resolve
from trainer.records.record_files import RecordWriter
from trainer.records.settings import claim_directory
from trainer.storage.fingerprint import SHORT, file_sha256

_BATCH_SIZE = 8


def score(arguments: argparse.Namespace) -> None:
    """Score every response of the file that DIR lacks."""
    temperature = Sampling(temperature=arguments.temperature).entropy_temperature
    model = resolve(arguments.model)  # smollm2 and GGUF files become directories
    loading.check_source(model, arguments.adapter)
    asked = prompt_to_ask(arguments)
    (method,) = methods([arguments.methods], asked).values()
    config = loading.load_config(model, arguments.revision)
    tokenizer = loading.load_tokenizer(model, arguments.revision)
    source = ModelSource(
        model,
        arguments.revision,
        arguments.adapter,
        loading.resolve_dtype(arguments.dtype, config),
        loading.resolve_device(arguments.device),
    )
    groups = read_scoring_input(arguments.score, tokenizer, method)  # read and checked before anything is made
    check_lengths(groups, getattr(config.get_text_config(), "max_position_embeddings", None))
    settings = {
        "mode": "score",
        **loading.model_settings(arguments, source, config),
        "scored_file": file_sha256(arguments.score)[:SHORT],
        "temperature": arguments.temperature,
        "entropy_temperature": temperature,
        "prompt": None if asked is None else asked.described(),
        "prompt_method": arguments.methods,
    }
    claim_directory(arguments.output, settings, source.device)
    scorer = None
    batch_size = arguments.batch_size or _BATCH_SIZE
    for (benchmark, method_name), rows in groups.items():
        with RecordWriter(arguments.output, benchmark, method_name) as writer:
            todo = [
                rows[start : start + batch_size]
                for start in range(0, len(rows), batch_size)
                if any(row.key not in writer.written for row in rows[start : start + batch_size])
            ]
            if todo and scorer is None:
                scorer = Scorer(
                    loading.load_model(source), temperature=temperature, chunk_tokens=arguments.chunk_tokens
                )
            with Progress(writer, len(rows)) as progress:
                for batch in todo:
                    entropies = scorer.entropies([(row.prompt_ids, row.response_ids) for row in batch])
                    records = [
                        row.record(tokenizer, row_entropies)
                        for row, row_entropies in zip(batch, entropies, strict=True)
                        if row.key not in writer.written
                    ]
                    writer.append(records)
                    progress.add(records)


def check_lengths(groups: dict[tuple[str, str], list[ScoringRow]], limit: int | None) -> None:
    """Raise ValueError if a prompt and its response are longer than the model's positions."""
    for rows in groups.values():
        for row in rows:
            length = len(row.prompt_ids) + len(row.response_ids)
            if limit is not None and length > limit:
                raise ValueError(
                    f"id {row.key[0]!r}, sample {row.key[1]}: prompt and response have {length} tokens, "
                    f"the model has {limit} positions"
                )
