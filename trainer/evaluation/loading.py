"""Model, adapter and options in; tokenizer, model or engine out. Checks come before anything slow is loaded."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trainer.evaluation.requests import Engine, Sampling
from trainer.sampling import vllm_support
from trainer.sampling.early_exit import EarlyExit
from trainer.storage.fingerprint import model_fingerprint

_DEFAULT_BATCH = {"transformers": 32, "vllm": 256}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Args:
        model: name on the hub or path of a directory (trainer.models has made one of a GGUF file).
        revision: of a name on the hub, or None.
        adapter: path or name of a PEFT adapter, or None.
        dtype: "float32", "bfloat16" or "float16".
        device: a torch device.
    """

    model: str
    revision: str | None
    adapter: str | None
    dtype: str
    device: str


def default_batch_size(engine: str) -> int:
    """Sequences at once: vLLM keeps its batch full by itself, so it is given more."""
    return _DEFAULT_BATCH[engine]


def check_source(model: str, adapter: str | None) -> None:
    """Raise OSError for a path that is not there, or is no directory of a model, before a hub is asked for it."""
    for kind, name, needed in (("model", model, "config.json"), ("adapter", adapter, "adapter_config.json")):
        if name is None:
            continue
        path = Path(name)
        if path.is_file():
            raise NotADirectoryError(f"--{kind} {name} is a file: expected the directory that holds {needed}")
        if path.is_dir() and not (path / needed).is_file():
            raise FileNotFoundError(f"--{kind} {name}: the directory holds no {needed}")
        if not path.is_dir() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
            raise FileNotFoundError(f"--{kind} {name}: no such directory")


def load_config(model: str, revision: str | None) -> PretrainedConfig:
    """The model's config. Raises OSError for a name that neither disk nor hub knows."""
    try:
        return AutoConfig.from_pretrained(model, revision=revision)
    except OSError as error:
        raise OSError(f"--model {model} is no directory here, and could not be had from the hub: {error}") from error


def resolve_dtype(dtype: str, config: PretrainedConfig) -> str:
    """ "auto" is what the checkpoint was saved in: the same in both engines."""
    if dtype != "auto":
        return dtype
    saved = config.get_text_config().dtype or config.dtype or torch.float32
    return str(saved).removeprefix("torch.")


def resolve_device(device: str) -> str:
    """ "auto" is the GPU if there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(model: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ValueError where there is none: transformers makes up an empty one."""
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, padding_side="left")
    if not tokenizer("1 a")["input_ids"]:
        raise ValueError(f"--model {model} holds no tokenizer (tokenizer.json, or the files of its kind)")
    return tokenizer


def stop_ids(model: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response: the tokenizer's and those of the generation config.

    Raises ValueError if there is none: every response would run to its limit.
    """
    ids = {tokenizer.eos_token_id}
    try:
        declared = GenerationConfig.from_pretrained(model, revision=revision).eos_token_id
    except OSError:  # a model without generation_config.json
        declared = load_config(model, revision).get_text_config().eos_token_id
    ids.update(declared if isinstance(declared, list) else [declared])
    ids.discard(None)
    if not ids:
        raise ValueError(f"{model} names no end-of-sequence token in its tokenizer or config; responses could not end")
    return sorted(ids)


def load_model(source: ModelSource) -> PreTrainedModel:
    """The model in evaluation mode on its device, wrapped by PEFT if there is an adapter."""
    model = AutoModelForCausalLM.from_pretrained(
        source.model, revision=source.revision, dtype=getattr(torch, source.dtype)
    ).to(source.device)
    if source.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, source.adapter, is_trainable=False)
    return model.eval()


def load_engine(
    name: str,
    source: ModelSource,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest_prompt: int,
    batch_size: int,
    gpu_memory_utilization: float,
    seed: int,
    early_exit: EarlyExit | None = None,
) -> Engine:
    """The engine of that name, loaded.

    Raises ModuleNotFoundError for vLLM where it is not installed, ValueError for one that is not supported.
    """
    ends = stop_ids(source.model, source.revision, tokenizer)
    if name == "transformers":
        from trainer.evaluation.engine_transformers import TransformersEngine

        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
        return TransformersEngine(load_model(source), sampling, stop_ids=ends, pad_id=pad, early_exit=early_exit)

    require_vllm()
    vllm_support.prepare_environment(cpu=source.device == "cpu")
    from trainer.evaluation.engine_vllm import VllmEngine

    return VllmEngine(
        source.model,
        revision=source.revision,
        adapter=source.adapter,
        dtype=source.dtype,
        sampling=sampling,
        stop_ids=ends,
        max_model_len=longest_prompt + sampling.max_new_tokens,
        batch_size=batch_size,
        gpu_memory_utilization=gpu_memory_utilization,
        seed=seed,
        early_exit=early_exit,
    )


def require_vllm() -> None:
    """Raise ModuleNotFoundError or ValueError, saying what to install, where vLLM or its version is not there."""
    try:
        vllm_support.require_vllm("--engine vllm")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; --engine transformers needs nothing more") from None


def check_positions(longest_prompt: int, where: str, sampling: Sampling, config: PretrainedConfig) -> None:
    """Raise ValueError if the longest prompt and a full response do not fit into the model's positions."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest_prompt + sampling.max_new_tokens > limit:
        raise ValueError(
            f"max_new_tokens {sampling.max_new_tokens} after the longest prompt ({longest_prompt} tokens, {where}) is "
            f"more than the model's {limit} positions: at most --max_new_tokens {max(limit - longest_prompt, 0)} fits"
        )


def model_settings(
    arguments: argparse.Namespace, source: ModelSource, config: PretrainedConfig
) -> dict[str, str | None]:
    """What settings.json says about the model: its name as it was given, its weights by a hash."""
    return {
        "model": arguments.model,
        "revision": arguments.revision,
        "model_commit": getattr(
            config, "_commit_hash", None
        ),  # of a name on the hub: what the revision was at the time
        "model_fingerprint": model_fingerprint(source.model),
        "adapter": arguments.adapter,
        "adapter_fingerprint": model_fingerprint(arguments.adapter) if arguments.adapter else None,
        "dtype": source.dtype,
    }
