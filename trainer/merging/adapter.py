"""The files of a LoRA adapter: found, read, and checked before a model is loaded for them.

In: a directory (or a name on the hub). Out: an AdapterFiles with PEFT's configuration and a hash of every file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from trainer.storage.fingerprint import file_sha256

CONFIG_NAME = "adapter_config.json"
# Initialisations of PEFT that subtract their B A from the base (or put another base in its place). The adapter belongs
# to that changed base, which its files do not hold; PEFT computes it again on loading, from another random start
# (pissa_niter), other rounding (pissa, olora) or not at all (corda, lora_ga). eva, mica and orthogonal leave the base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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
        ValueError: not a LoRA adapter, or one that cannot be merged into this base.
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
    _require_mergeable(given, json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8")))
    config = PeftConfig.from_pretrained(str(directory))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"adapter {given}: a {config.peft_type} adapter; only LoRA can be merged here")
    hashes = {name: file_sha256(directory / name) for name in (CONFIG_NAME, weights[0])}
    return AdapterFiles(given, directory, config, hashes)


def _require_mergeable(given: str, config: dict[str, Any]) -> None:
    """Before PEFT reads the configuration: it needs scipy for a loftq one."""
    kind = str(config.get("init_lora_weights"))
    if kind.lower().startswith(_CHANGES_BASE):
        raise ValueError(
            f"adapter {given}: its initialisation, {kind}, changed the base it was trained on, which the adapter does "
            "not hold. Convert it where it was trained, with the initial adapter: model.save_pretrained(DIR, "
            "path_initial_model_for_weight_conversion=INITIAL) writes a LoRA of the unchanged base, and that one merges"
        )
    if config.get("alora_invocation_tokens"):
        raise ValueError(
            f"adapter {given}: an activated LoRA (aLoRA) works only after its invocation tokens, which no fixed "
            "weights can do; serve the adapter unmerged"
        )
