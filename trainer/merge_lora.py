"""python -m trainer.merge_lora --model M --adapter A [A2 ...] --output DIR: models with their LoRA folded in.

In: a base model and adapters (PEFT, as TRL saves them). Out: a directory that transformers and vLLM load without PEFT:
safetensors in the base's dtype, configuration, the tokenizer and generation configuration of the base byte for byte
(the adapter's tokenizer where it brings one), and merge_record.json: what was merged, from which files, and how well.

    one adapter       -> DIR
    several           -> DIR/NAME each, merged on its own; NAME is the end of the adapter's path that tells them apart.
                         A repeated call keeps what an interrupted one has finished.
    one upon another  -> merge the first, then give the result as --model.

Every merge is verified before its directory gets its name; see trainer/merging.
"""

# transformers gives what it loads as one of many types:
# pyright: reportArgumentType=false
# pyright: reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file

from trainer.console.closed_pipe import outlive_readers
from trainer.console.interrupt import unwind_again
from trainer.console.output_directory import output_directory
from trainer.merging.adapter import AdapterFiles, find_adapter
from trainer.merging.merge import attach, merge, require_same_vocabulary
from trainer.merging.verify import agreement, checksums, logits_of, require_same_from_disk, token_sequences
from trainer.models.names import resolve
from trainer.prompts.prompt import prompt_of, write_prompt
from trainer.records.directories import labelled_directories
from trainer.storage.atomic import require_free, staged_directory
from trainer.storage.fingerprint import model_fingerprint

RECORD_NAME = "merge_record.json"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
_KEPT_WARNING = 0.9


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.merge_lora", description="Fold LoRA adapters into the weights of their base model."
    )
    made.add_argument(
        "--model",
        "--model_name_or_path",
        required=True,
        help="the base model: a directory or a name on the hub, not quantised; a .gguf file; or smollm2",
    )
    made.add_argument("--revision", help="of the base model on the hub")
    made.add_argument("--adapter", required=True, nargs="+", help="adapter directories, or names on the hub")
    made.add_argument("--output", required=True, type=output_directory, help="where to write: absent or empty")
    made.add_argument("--dtype", choices=_DTYPES, help="of the merged weights; default: that of the base")
    made.add_argument("--device", default="cpu", help="where to merge and verify; default: cpu")
    made.add_argument("--max_shard_size", default="5GB", help="of a safetensors file; default: 5GB")
    return made


def main(args: argparse.Namespace) -> int:
    args.model_path = resolve(args.model)  # smollm2 and GGUF files become directories
    _require_plain_weights(args)
    adapters = [find_adapter(given) for given in args.adapter]
    if len(adapters) == 1:
        outputs = [args.output]
        require_free(args.output)
    else:
        if twice := {given for given in args.adapter if args.adapter.count(given) > 1}:
            raise ValueError(f"--adapter: {', '.join(sorted(twice))} is given twice")
        names = [label.replace("/", "-") for label, _ in labelled_directories(args.adapter)]
        outputs = [args.output / name for name in names]
    for number, (adapter, output) in enumerate(zip(adapters, outputs, strict=True), start=1):
        if len(adapters) > 1 and _is_done(output, adapter, args):
            print(f"[{number}/{len(adapters)}] {output}: there already, from the same files")
            continue
        record = merge_one(adapter, output, args)
        print(f"[{number}/{len(adapters)}] {output}: {_summary(record)}")
    return 0


def merge_one(adapter: AdapterFiles, output: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Merge, verify, and only then give the directory its name. Returns the merge record."""
    with staged_directory(output) as staging:
        base = _load(args.model_path, args.revision, args.device)
        require_same_vocabulary(base, adapter)
        base_dtype = base.dtype
        sequences = token_sequences(
            base.get_input_embeddings().weight.shape[0], include=_trained_tokens(adapter.config.trainable_token_indices)
        )
        base_logits = logits_of(base, sequences)
        adapted = attach(base, adapter)
        adapted_logits = logits_of(adapted, sequences)
        merged, layers, tying = merge(adapted, dtype=_DTYPES.get(args.dtype))
        del base, adapted
        expected, dtype = checksums(merged), merged.dtype
        merged.save_pretrained(staging, max_shard_size=args.max_shard_size)
        del merged  # the memory of one model is enough
        _copy_files(args.model_path, args.revision, adapter, staging)
        reloaded, info = AutoModelForCausalLM.from_pretrained(staging, dtype="auto", output_loading_info=True)
        require_same_from_disk(reloaded, info, expected)
        merged_logits = logits_of(reloaded.to(args.device).eval(), sequences)
        found = agreement(merged_logits, adapted_logits, base_logits, base_dtype, dtype)
        del reloaded
        kept = [(layer.kept, layer.name) for layer in layers if layer.kept is not None]
        record = {
            **_identity(adapter, args),
            "saved_dtype": str(dtype).removeprefix("torch."),
            "tied_embeddings": tying,
            "layers": len(layers),
            "update_kept": {"mean": _mean(kept), "lowest": min(kept)[0], "layer": min(kept)[1]} if kept else None,
            "verification": {
                "tokens": sum(ids.numel() for ids in sequences),
                "logit_error": found.error,
                "tolerance": found.tolerance,
                "adapter_effect": found.effect,
            },
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
            | {"python": platform.python_version()},
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        (staging / RECORD_NAME).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return record


def _mean(kept: list[tuple[float, str]]) -> float:
    return sum(share for share, _ in kept) / len(kept)


def _summary(record: dict[str, Any]) -> str:
    check, kept = record["verification"], record["update_kept"]
    text = (
        f"{record['layers']} layers merged in {record['saved_dtype']}, logits within {check['logit_error']:.1e} of the "
        f"adapter's (which moved them by {check['adapter_effect']:.1e})"
    )
    if record["tied_embeddings"] == "untied":
        text += "; embeddings untied, the adapter changes one of the two"
    if kept is None:
        text += "; the adapter changes nothing"
    elif kept["mean"] < _KEPT_WARNING:
        text += (
            f"\n  warning: rounding to {record['saved_dtype']} kept only {kept['mean']:.0%} of the update "
            f"({kept['lowest']:.0%} in {kept['layer']}): it is smaller than the gaps between neighbouring weights. "
            "--dtype float32 keeps all of it; or serve the adapter unmerged"
        )
    return text


def _load(model: str, revision: str | None, device: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype="auto").to(device).eval()


def _require_plain_weights(args: argparse.Namespace) -> None:
    config = AutoConfig.from_pretrained(args.model_path, revision=args.revision)
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{args.model} is quantised; merge into the model it was made from")


def _trained_tokens(indices: list[int] | dict[str, list[int]] | None) -> list[int]:
    if isinstance(indices, dict):
        return sorted({token for tokens in indices.values() for token in tokens})
    return list(indices or [])


def _identity(adapter: AdapterFiles, args: argparse.Namespace) -> dict[str, Any]:
    """What makes two merges the same merge."""
    return {
        "base": {"model": args.model, "revision": args.revision, "fingerprint": model_fingerprint(args.model_path)},
        "adapter": adapter.describe(),
        "dtype_asked": args.dtype,
    }


def _is_done(output: Path, adapter: AdapterFiles, args: argparse.Namespace) -> bool:
    """Whether `output` is this very merge. Raises FileExistsError where it is something else."""
    if not (output / RECORD_NAME).is_file():
        require_free(output)
        return False
    record = json.loads((output / RECORD_NAME).read_text(encoding="utf-8"))
    mine = json.loads(json.dumps(_identity(adapter, args)))
    different = [key for key in mine if record.get(key) != mine[key]]
    if different:
        raise FileExistsError(f"{output} holds another merge ({', '.join(different)} differ); give another --output")
    return True


def _copy_files(model: str, revision: str | None, adapter: AdapterFiles, target: Path) -> None:
    """Tokenizer and generation configuration, byte for byte: loading and saving them again would rewrite them."""
    own_tokenizer = (adapter.directory / "tokenizer_config.json").is_file()
    for name in _TOKENIZER_FILES:
        if own_tokenizer:
            source = adapter.directory / name if (adapter.directory / name).is_file() else None
        else:
            source = _file_of(model, revision, name)
        if source:
            shutil.copyfile(source, target / name)
    if prompt := prompt_of(adapter.directory):
        write_prompt(target, prompt)  # the merged policy gets the prompt that it was trained with
    if generation := _file_of(model, revision, "generation_config.json"):
        shutil.copyfile(generation, target / "generation_config.json")


def _file_of(model: str, revision: str | None, name: str) -> str | None:
    return cached_file(
        model,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


if __name__ == "__main__":
    outlive_readers()
    unwind_again()
    try:
        sys.exit(main(parser().parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f"trainer.merge_lora: {error}")
    except KeyboardInterrupt:
        print("trainer.merge_lora: interrupted; nothing unfinished was left", file=sys.stderr)
        sys.exit(130)
