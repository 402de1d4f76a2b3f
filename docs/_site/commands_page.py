"""The page reference/commands.md of the site, from the parsers of the commands: `python docs/_site/commands_page.py`.

In: the argparse parsers of trainer/*.py. Out, on standard output: a table of options per command. It needs an
environment in which the commands run; source_pages.py calls it when the site is built.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by the name of its console script."""
    from trainer import evaluate, merge_lora, plots, report
    from trainer.experiment import __main__ as experiment
    from trainer.training.arguments import help_parser

    return {
        "cer-grpo": help_parser(),
        "cer-evaluate": evaluate.parser(),
        "cer-report": report.parser(),
        "cer-plots": plots.parser(),
        "cer-merge-lora": merge_lora.parser(),
        "cer-experiment": experiment.parser(),
    }


def cell(text: str) -> str:
    """Text in a cell of a markdown table, as it stands."""
    for sign in "\\|*_`[]":
        text = text.replace(sign, f"\\{sign}")
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(text.split())


def option_row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    if action.choices:
        names += f" {cell(', '.join(map(str, action.choices)))}"
    return f"| {names} | {cell((action.help or '').replace('%%', '%'))} |"


def page() -> str:
    lines = ["# Command line", ""]
    lines += ["Each command has two names: the console script, and the module that it runs.", ""]
    for script, parser in parsers().items():
        lines += [f"## {script}", "", f"`{parser.prog}`", "", cell(parser.description or ""), ""]
        lines += ["| option | meaning |", "|---|---|"]
        lines += [option_row(action) for action in parser._actions if action.dest not in ("help", "help_trl")]
        if parser.epilog:
            lines += ["", cell(parser.epilog)]
        lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
