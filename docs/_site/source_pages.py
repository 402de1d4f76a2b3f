"""A hook of mkdocs: pages that are made when the site is built.

Files of the repository that pages link to. In: docs/*.md, with links such as ../trainer/rewards/entropy.py, which work
where the repository is read as files. Out: the same links in the built site. A text file becomes a page that shows it;
anything else is copied as it is.

The options of the commands (commands_page.py), by the Python that CER_PYTHON names: the site's own environment cannot
run the commands. Without one the page says so.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
LANGUAGES = {
    ".py": "python",
    ".md": "markdown",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".sh": "bash",
    ".h": "cpp",
    ".cpp": "cpp",
    ".cuh": "cpp",
}


def target_of(link: str, page: str) -> Path | None:
    """The file outside docs/ that a link of a page means, or None where it stays inside or leads nowhere."""
    path = (ROOT / "docs" / page).parent.joinpath(link).resolve()
    return None if (ROOT / "docs") in path.parents or not path.exists() or path == ROOT else path


def place_of(path: Path) -> str:
    """Where the site has a file of the repository."""
    relative = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        return f"source/{relative}/contents.md"
    return f"source/{relative}.md" if path.suffix in LANGUAGES else f"source/{relative}"


def content_of(path: Path) -> str:
    relative = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if child.is_file())
        return "\n".join([f"# {relative}", "", *(f"- {name}" for name in names), ""])
    text = path.read_text(encoding="utf-8")
    if path.suffix not in LANGUAGES:
        return text
    return f"# {relative}\n\n````` {LANGUAGES[path.suffix]}\n{text}\n`````\n"


def commands_page() -> str:
    """The options of every command. Raises subprocess.CalledProcessError where CER_PYTHON cannot run the commands."""
    python = os.environ.get("CER_PYTHON")
    if not python:
        return "# Command line\n\nThis site was built without the commands: each lists its options with `--help`.\n"
    maker = Path(__file__).with_name("commands_page.py")
    return subprocess.run([python, str(maker)], check=True, stdout=subprocess.PIPE, text=True).stdout


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    for file in list(files.documentation_pages()):
        for match in LINK.finditer(file.content_string):
            path = target_of(match.group(1), file.src_uri)
            if path is not None and files.get_file_from_path(place_of(path)) is None:
                files.append(File.generated(config, place_of(path), content=content_of(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def rewritten(match: re.Match[str]) -> str:
        path = target_of(match.group(1), page.file.src_uri)
        if path is None:
            return match.group(0)
        upwards = "../" * page.file.src_uri.count("/")
        return f"]({upwards}{place_of(path)}{match.group(2) or ''})"

    return LINK.sub(rewritten, markdown) if not page.file.src_uri.startswith("source/") else markdown
