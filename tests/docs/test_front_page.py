"""What README.md shows runs: its ten lines, its names, its options; it stays a page, and its links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex

import pytest
from test_pages import ROOT

README = (ROOT / "README.md").read_text("utf-8")
CODE = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = "\n".join(re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
COMMANDS = [line.split("#")[0].strip() for line in SHELL.splitlines() if line.startswith("python -m")]


def test_it_is_a_page_with_a_picture_above_the_fold():
    lines = README.splitlines()
    assert len(lines) <= 130
    assert any(line.startswith("![") for line in lines[:12])


def test_the_ten_lines_run(capsys):
    exec(compile(CODE[0], "README.md", "exec"), {})
    reward = capsys.readouterr().out
    first, second = (float(number) for number in re.findall(r"[\d.]+(?=[,\]])", reward))
    assert 1 < first < 1.5  # right
    assert second == 0  # wrong


def test_what_the_other_lines_import_is_there():
    imports = [node for node in ast.walk(ast.parse(CODE[1])) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        for name in node.names:
            assert hasattr(importlib.import_module(node.module), name.name), f"{node.module}.{name.name}"


@pytest.mark.parametrize("command", [one for one in COMMANDS if "trainer.grpo" not in one])
def test_commands_have_the_options_they_are_shown_with(command):
    _, _, module, *arguments = shlex.split(command)
    importlib.import_module(module).parser().parse_args(arguments)


def test_the_training_command_has_the_options_it_is_shown_with(monkeypatch):
    from trainer.training.arguments import parse

    (command,) = [one for one in COMMANDS if one.startswith("python -m trainer.grpo --")]
    options = [word for word in shlex.split(command)[3:] if word != "--use_vllm"]  # whose engine is not installed here
    run, _, _ = parse([*options, "--use_vllm", "false", "--use_cpu", "true", "--bf16", "false"])
    assert run.dataset


def test_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", README):
        assert "://" in link or (ROOT / link).exists(), link
