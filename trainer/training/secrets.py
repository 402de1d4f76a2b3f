"""Tokens, keys and passwords stay where the person put them: in no printed command, log, checkpoint or record.

In: a command line, settings. Out: the same without what must not be told.

A secret is an option by its name (hub_token, api_key, password, ...), or a URL that carries a password. An option's
value that is a mapping (model_init_kwargs) is handed to libraries which write it into logs and trackers: a secret in
there is refused at the command line.
"""

import os
import re
from collections.abc import Mapping, Sequence

from trainer.training.config_error import ConfigError

_NAMES = re.compile(
    r"(^|_)(token|api_?key|access_?key|secret(_?key)?|password|passwd|credentials?|auth)$", re.IGNORECASE
)
_TEXT_TOKENS = ("pad_token", "eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_URL_PASSWORD = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s:]*:[^/@\s]+@", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether an option of this name holds what nobody else may read."""
    name = name.lstrip("-").replace("-", "_").lower()
    return name not in _TEXT_TOKENS and _NAMES.search(name) is not None


def shown(name: str, value):
    """The value of a setting as it may be told: `<name>` for a secret, mappings and URLs without theirs."""
    if is_secret(name) and isinstance(value, str) and value:
        return f"<{name.replace('-', '_')}>"
    if isinstance(value, str):
        return _URL_PASSWORD.sub(r"\g<scheme><password>@", value)
    if isinstance(value, Mapping):
        return {key: shown(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shown(name, inner) for inner in value]
    return value


def shown_words(words: Sequence[str]) -> list[str]:
    """A command line as it may be printed: `--hub_token '<hub_token>'`, to be filled in again."""
    told, items = [], iter(words)
    for word in items:
        name, equals, value = word.partition("=")
        if not (word.startswith("--") and is_secret(name)):
            told.append(shown("", word))
        elif equals:
            told.append(f"{name}={shown(name.lstrip('-'), value)}")
        else:
            told.append(word)
            value = next(items, None)
            if value is not None:
                told.append(shown(name.lstrip("-"), value))
    return told


def refuse_where_they_would_be_told(settings: Mapping) -> None:
    """Raise ConfigError for a secret inside of a mapping or a URL."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and shown(name, value) != _plain(value):
            raise ConfigError(
                f"{name} holds a token, key or password, which logs and trackers would show: leave it out, and set the "
                "library's own environment variable (HF_TOKEN, ...) or log in with its command"
            )
        if isinstance(value, str) and not is_secret(name) and shown(name, value) != value:
            raise ConfigError(f"{name} holds a password in its URL, which logs and trackers would show: leave it out")


def _plain(value):
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def move_to_environment(config) -> None:
    """--hub_token becomes HF_TOKEN of this process, which huggingface_hub reads: training arguments are pickled."""
    if config.hub_token:
        os.environ["HF_TOKEN"] = config.hub_token
        config.hub_token = None
