"""The files of a LoRA adapter: found, read, and checked before a model is loaded for them.

In: a directory (or a name on the hub). Out: an AdapterFiles with PEFT's configuration and a hash of every file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from trainer.storage.fingerprint import file_sha256

CONFIG_NAME = "adapter_config.json"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on this machine; `given` is what the person called it."""

    given: str
    directory: Path
    config: LoraConfig
    hashes: dict[str, str]  # file name -> sha256

    def describe(self) -> dict[str, Any]:
        """What the merge record says of it."""
        config = self.config
        return {
            "path": self.given,
            "sha256": self.hashes,
            "trained_on": config.base_model_name_or_path,
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "rank_pattern": dict(config.rank_pattern),
            "alpha_pattern": dict(config.alpha_pattern),
            "use_rslora": config.use_rslora,
            "use_dora": config.use_dora,
            "target_modules": _plain(config.target_modules),
            "modules_to_save": _plain(config.modules_to_save),
            "trainable_token_indices": _plain(config.trainable_token_indices),
        }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else value


def find_adapter(given: str) -> AdapterFiles:
    """Locate an adapter and check that it is one that can be merged.

    Raises:
        FileNotFoundError: no configuration or no weights there.
        ValueError: not a LoRA adapter.
    """
    directory = Path(given)
    if not directory.is_dir():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", given):  # OWNER/NAME on the hub
            raise FileNotFoundError(f"adapter {given}: no such directory")
        from huggingface_hub import snapshot_download

        directory = Path(snapshot_download(given))
    if not (directory / CONFIG_NAME).is_file():
        inside = ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"adapter {given}: no {CONFIG_NAME} in it (there is: {inside})")
    weights = [name for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME) if (directory / name).is_file()]
    if not weights:
        raise FileNotFoundError(f"adapter {given}: neither {SAFETENSORS_WEIGHTS_NAME} nor {WEIGHTS_NAME} in it")
    config = PeftConfig.from_pretrained(str(directory))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"adapter {given}: a {config.peft_type} adapter; only LoRA can be merged here")
    hashes = {name: file_sha256(directory / name) for name in (CONFIG_NAME, weights[0])}
    return AdapterFiles(given, directory, config, hashes)
