"""A GGUF file, converted once to what transformers, PEFT and vLLM load: float32 safetensors and a tokenizer.

In: a GGUF file.  Out: CACHE/gguf-NAME-HASH/ with config.json, model.safetensors, the tokenizer, and conversion.json:

    gguf_sha256      of the whole file; HASH is its beginning, so another file is another directory
    weights_sha256   {file: hash} of the safetensors, compared whenever the directory is used

The directory appears by one rename, so it is whole or absent; one that was damaged since is made again.

Limits. Weights are dequantised: the arithmetic is float32's (or --dtype's), the values are those of the quantised file,
and memory is that of the unquantised model. Architectures are those whose GGUF transformers reads (Llama, Qwen2 and 3,
Gemma, Phi-3, Mistral and some more); a file in several parts is not read. The tokenizer is transformers' conversion of
the file's. While it converts, the model is in memory twice.

transformers marks a model that came out of a GGUF file as quantised, and then refuses to save or train it. Here its
weights are put under a configuration without that mark, and read back from the disk before the directory gets its name.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from trainer.storage.atomic import staged_directory, write_json
from trainer.storage.cache import default_cache_dir
from trainer.storage.fingerprint import SHORT, file_sha256

CONVERSION_FILE = "conversion.json"
_MAGIC = b"GGUF"


def converted(path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """The directory of the converted file, from the cache or made now (about 15 s for 135M parameters).

    Raises:
        ValueError: not a GGUF file, or one of an architecture that transformers cannot read.
        ModuleNotFoundError: the package gguf is not installed.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path} is not a GGUF file")
    sha256 = file_sha256(path)
    root = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    target = root / f"gguf-{path.stem}-{sha256[:SHORT]}"
    if _is_whole(target):
        return target
    if target.exists():
        print(f"{target}: damaged since it was made; converting again", file=sys.stderr)
        shutil.rmtree(target)
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"{path}: reading GGUF files needs the package gguf (pip install gguf)")
    print(f"converting {path.name} once, to {target}", file=sys.stderr)
    try:
        with staged_directory(target) as staging:
            _convert(path, staging)
            weights = {file.name: file_sha256(file) for file in sorted(staging.glob("*.safetensors"))}
            write_json(staging / CONVERSION_FILE, {"gguf": path.name, "gguf_sha256": sha256, "weights_sha256": weights})
    except FileExistsError:
        if not _is_whole(target):
            raise  # else another process was faster: its directory is as good
    return target


def _is_whole(directory: Path) -> bool:
    """Whether a directory holds the weights that its conversion wrote."""
    try:
        conversion: dict[str, Any] = json.loads((directory / CONVERSION_FILE).read_text(encoding="utf-8"))
        return bool(conversion["weights_sha256"]) and all(
            file_sha256(directory / name) == sha256 for name, sha256 in conversion["weights_sha256"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert(path: Path, output: Path) -> None:
    """Write the model and its tokenizer to `output`; raise unless what was written reads back bit for bit."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path}: transformers cannot read this GGUF file: {error}") from error
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    for label in ("_name_or_path", "_model_name_or_path"):  # the author's, and no place to load from
        settings.pop(label, None)
    with torch.device("meta"):  # takes the weights over instead of making its own
        plain = type(read)(type(read.config)(**settings))
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(output)
    tokenizer.save_pretrained(output)
    del plain

    expected = read.state_dict()
    found = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).state_dict()
    if found.keys() != expected.keys():
        raise ValueError(f"{path}: converted weights have other names: {sorted(found.keys() ^ expected.keys())}")
    for name, tensor in found.items():
        if not torch.equal(tensor, expected[name]):
            raise ValueError(f"{path}: {name} is not the same after it was written and read")
