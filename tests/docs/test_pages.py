"""What the pages say of the program is still so: messages, options, files."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))


def texts_of(source: str) -> list[str]:
    """Every text in a Python file as it is printed, no docstring; values that are put in stand as …"""
    found = []
    tree = list(ast.walk(ast.parse(source)))
    docstrings = {id(node.value) for node in tree if isinstance(node, ast.Expr)}
    for node in tree:
        if id(node) in docstrings:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return found


@pytest.fixture(scope="module")
def messages() -> str:
    python = [path for package in ("cer_ext", "trainer", "cer_verl") for path in (ROOT / package).rglob("*.py")]
    texts = [text for path in [*python, ROOT / "cer_commands.py"] for text in texts_of(path.read_text("utf-8"))]
    return "\n".join([*texts, (ROOT / "CMakeLists.txt").read_text("utf-8")])


def quoted_messages() -> list[str]:
    """The messages in the first column of the page's tables. Python's own are left out."""
    rows = re.findall(r"^\| `([^`]+)`", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    return [row for row in rows if not row.startswith("No module named")]


def test_the_page_of_troubles_has_messages():
    assert len(quoted_messages()) > 30


@pytest.mark.parametrize("message", quoted_messages())
def test_every_message_of_the_page_of_troubles_is_the_programs(message, messages):
    for part in filter(None, (part.strip() for part in message.split("…"))):
        assert part in messages, f"no part of the program says {part!r}"


def test_the_page_of_commands_has_every_option_of_every_command():
    spec = importlib.util.spec_from_file_location("commands_page", DOCS / "_site" / "commands_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chapters = dict(re.findall(r"^## (cer-[a-z-]+)$(.*?)(?=^## |\Z)", module.page(), re.MULTILINE | re.DOTALL))
    scripts = re.findall(r"^(cer-[a-z-]+) = ", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert sorted(chapters) == sorted(scripts)
    for option in ("--reward", "--early_exit", "--dataset", "--teca_source"):
        assert f"| `{option}` |" in chapters["cer-grpo"]
    assert re.search(
        r"^\| `--format` markdown, csv, latex \| default: markdown \|$", chapters["cer-report"], re.MULTILINE
    )
    assert "&lt;name&gt;" in chapters["cer-grpo"], "a tag would vanish"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_of_a_page_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text("utf-8")):
        made = link.endswith("commands.md")  # when the site is built
        if "://" not in link and not link.startswith("mailto:") and not made:
            assert (page.parent / link).exists(), link


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES:
        assert re.search(rf"(: | - ){re.escape(page.relative_to(DOCS).as_posix())}$", navigation, re.MULTILINE), page


def test_every_public_name_is_on_an_api_page():
    import cer_ext
    from trainer import rewards

    kernels = (DOCS / "reference" / "cer_ext.md").read_text("utf-8")
    for name in cer_ext.__all__:
        assert re.search(rf"^::: cer_ext(\.\w+)?\.{name}$|^::: cer_ext\.{name}$", kernels, re.MULTILINE), name
    functions = (DOCS / "reference" / "rewards.md").read_text("utf-8")
    for name in rewards.__all__:
        module = getattr(rewards, name).__module__
        shown = rf"^::: ({re.escape(module)}|trainer\.rewards\.{name})$"
        assert re.search(shown, functions, re.MULTILINE), name


def test_docstrings_are_markdown():
    """The site shows them as it: roles and directives of another markup would stand there as they are."""
    for package in ("cer_ext", "trainer", "cer_verl"):
        for path in (ROOT / package).rglob("*.py"):
            found = re.findall(r":(?:func|class|mod|meth):`|^ *\.\. [a-z]+::", path.read_text("utf-8"), re.MULTILINE)
            assert not found, f"{path.relative_to(ROOT)}: {found}"
