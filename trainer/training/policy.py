"""The policy that a run starts from, and its tokenizer.

In: TRL's ModelConfig.  Out: a tokenizer, and a model or what TRL makes one of (a directory or hub id).

`tiny-bytes` is the embedded size with random weights, drawn by the seed, and one token per byte. It is written to the
output directory first, one directory a seed: TRL reloads the reference policy from where the model says it came from.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.models.names import resolve
from trainer.storage.atomic import staged_directory
from trainer.training.arguments import TINY_BYTES, ConfigError


def find_weights(model_config, config, cache_dir: str | None) -> None:
    """Put a directory in the place of a name that means a GGUF file (trainer/models). Raises ConfigError."""
    try:
        with config.main_process_first():  # one process converts, the others find it done
            model_config.model_name_or_path = resolve(model_config.model_name_or_path, cache_dir)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise ConfigError(f"model_name_or_path: {error}") from error


def load_policy_tokenizer(model_config, config):
    """The tokenizer, padding and truncating on the left as generation needs. Raises ConfigError where there is none."""
    if model_config.model_name_or_path == TINY_BYTES:
        from trainer.tiny.tokenizer import byte_tokenizer

        return byte_tokenizer()
    name = str(Path(model_config.model_name_or_path).expanduser())
    try:
        return AutoTokenizer.from_pretrained(
            name,
            revision=model_config.model_revision,
            trust_remote_code=config.trust_remote_code,
            padding_side="left",
            truncation_side="left",
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model_name_or_path: no tokenizer for {name}: {error}") from error


def load_policy(model_config, config, tokenizer):
    """What the trainer takes as `model`; TRL loads a name with config.model_init_kwargs, which this sets."""
    if model_config.model_name_or_path == TINY_BYTES:
        from trainer.tiny.model import build_model

        start = Path(config.output_dir) / f"start-seed{config.seed}"
        with config.main_process_first():
            if not start.is_dir():
                with staged_directory(start) as staging:
                    build_model(tokenizer, seed=config.seed, max_positions=8192).save_pretrained(staging)
                    tokenizer.save_pretrained(staging)
        return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    config.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **(config.model_init_kwargs or {}),
    }
    return str(Path(model_config.model_name_or_path).expanduser())
