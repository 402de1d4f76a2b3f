"""A recipe, a YAML file of options, as values that pass the same checks as words of the command line.

In: the file, and the parser's options. Out: option -> value.

YAML reads some values in its own way: `no` is false, `3e-6` is a string, an empty value is null. A value that an option
cannot have is an error that names both.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from trainer.training.config_error import ConfigError

_LISTS_OF_ONE_WORD = ("report_to", "optim_target_modules")  # TRL's parser has one word there, its configuration a list


def read_recipe(path: Path) -> dict:
    """The mapping in the file. Raises ConfigError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: {key!r} is no option's name: expected text, got {type(key).__name__}")
    return content


def recipe_values(recipe: dict, actions: Iterable[argparse.Action]) -> dict:
    """The recipe with every value in the form that argparse takes as a default. Raises ConfigError."""
    found = dict(recipe)
    for action in actions:
        if action.dest in recipe:
            found[action.dest] = _value(action, recipe[action.dest])
    return found


def _value(action: argparse.Action, value):
    name, many = action.dest, action.nargs in ("+", "*")
    if value is None:
        if action.default is None:
            return None
        raise ConfigError(f"{name} in the recipe is empty: give a value, or leave the line out")
    if action.type is None:
        return value
    if isinstance(value, dict):
        if name.endswith(("_kwargs", "_config")) or name == "deepspeed":
            return value
        raise ConfigError(f"{name} in the recipe is {value!r}: expected a value, not a mapping")
    if isinstance(value, list):
        if many:
            for one in value:
                _check(action, one)
            return value
        if name in _LISTS_OF_ONE_WORD:
            return [str(one) for one in value]
        raise ConfigError(f"{name} in the recipe is {value!r}: expected one value, not a list")
    if value is False:  # `save_strategy: no`
        value = _word_for_no(action)
    _check(action, value)
    return [value] if many else str(value)  # 3e-6 is a string in YAML: argparse converts either


def _word_for_no(action: argparse.Action) -> str | bool:
    """What `no`, which YAML reads as false, stands for: the choice "no", or none where that is a word of its own."""
    if "no" in [str(getattr(choice, "value", choice)) for choice in action.choices or ()]:
        return "no"
    return "none" if action.dest == "report_to" else False


def _check(action: argparse.Action, value) -> None:
    if value is None or isinstance(value, list | dict):
        raise ConfigError(f"{action.dest} in the recipe has {value!r} in its list: expected single values")
    try:
        converted = action.type(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{action.dest} in the recipe is {value!r}: {error}") from error
    if action.choices is not None and converted not in action.choices:
        choices = ", ".join(str(getattr(choice, "value", choice)) for choice in action.choices)
        raise ConfigError(f"{action.dest} in the recipe is {value!r}: expected one of {choices}")
