"""Another distribution's package `trainer` in the same place: found out, and said in words that help.

The other distribution is a wheel made here, unpacked as pip unpacks it: files overwritten, metadata beside them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cer_ext
from trainer.name_clash import other_owners, require_own_package

ROOT = Path(__file__).parents[2]
THEIRS = {"trainer/__init__.py": "from trainer.training_loop import train\n", "trainer/training_loop.py": "train = 1\n"}


def install_ours(site: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    site.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "trainer", site / "trainer", ignore=ignore, dirs_exist_ok=True)
    shutil.copy(ROOT / "cer_commands.py", site)
    (site / "cer_ext").symlink_to(Path(cer_ext.__file__).parent)
    info = site / "cer_ext-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cer_ext\nVersion: 0.1.0\n")
    (info / "top_level.txt").write_text("cer_commands\ncer_ext\ntrainer\n")


def install_theirs(site: Path, *, top_level: bool = True) -> None:
    info = site / "trainer-0.0.36.dist-info"
    info.mkdir(parents=True)
    for name, text in THEIRS.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trainer\nVersion: 0.0.36\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in THEIRS))
    if top_level:
        (info / "top_level.txt").write_text("trainer\n")


def uninstall_theirs(site: Path) -> None:
    for name in THEIRS:
        (site / name).unlink()
    shutil.rmtree(site / "trainer-0.0.36.dist-info")


def hide_what_is_installed(site: Path) -> None:
    """Where the project itself is installed, that copy is whole, and would be found behind the one without a file."""
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Here:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        return PathFinder.find_spec(name, [{str(site)!r}]) if name == 'trainer' else None\n"
        "sys.meta_path.insert(0, Here)\n"
    )


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *words], cwd=site.parent, env=environment, text=True, capture_output=True, timeout=120
    )


REPORT = ("-c", "import sys, cer_commands; sys.argv = ['cer-report', '--published']; cer_commands.report()")


def test_alone_nothing_is_said(tmp_path):
    install_ours(tmp_path / "site")
    assert other_owners(tmp_path / "site" / "trainer") == []
    for words in (("-m", "trainer.report", "--published"), REPORT):
        done = run(tmp_path / "site", *words)
        assert done.returncode == 0, done.stderr
        assert "GSM8K" in done.stdout


@pytest.mark.parametrize("top_level", [True, False])
def test_theirs_overwritten_by_ours(tmp_path, top_level):
    install_theirs(tmp_path / "site", top_level=top_level)
    install_ours(tmp_path / "site")
    assert other_owners(tmp_path / "site" / "trainer") == ["trainer 0.0.36"]
    done = run(tmp_path / "site", "-c", "import trainer")
    assert done.returncode == 1
    assert "ImportError: two distributions have installed a package `trainer`" in done.stderr
    assert "pip uninstall -y trainer cer_ext, then install cer_ext again" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "trainer.report", "--published"),
        ("-m", "trainer.evaluate", "--help"),
        ("-c", "import trainer.rewards"),
        ("-c", "import trainer.cer_trainer"),
        REPORT,
    ],
)
def test_ours_overwritten_by_theirs(tmp_path, words):
    """trainer/__init__.py is theirs then, so what lies deeper must ask."""
    install_ours(tmp_path / "site")
    install_theirs(tmp_path / "site")
    done = run(tmp_path / "site", *words)
    assert done.returncode == 1
    assert "two distributions have installed a package `trainer`" in done.stderr
    assert "cer_ext and trainer 0.0.36" in done.stderr
    assert ("Traceback" in done.stderr) == (words is not REPORT), "a console script says it in one line"


def test_ours_after_theirs_was_uninstalled_lacks_a_file(tmp_path):
    install_ours(tmp_path / "site")
    install_theirs(tmp_path / "site")
    uninstall_theirs(tmp_path / "site")
    hide_what_is_installed(tmp_path / "site")
    with pytest.raises(ImportError, match=r"__init__\.py is missing: another distribution .* was probably uninstalled"):
        require_own_package(tmp_path / "site" / "trainer")
    for words in (("-m", "trainer.report", "--published"), REPORT):
        done = run(tmp_path / "site", *words)
        assert done.returncode == 1
        assert "__init__.py is missing" in done.stderr


def test_console_script_says_that_another_trainer_is_found_first(tmp_path):
    """As after `pip install -e .` beside theirs: a directory of the path before ours has it."""
    install_theirs(tmp_path / "site")
    shutil.copy(ROOT / "cer_commands.py", tmp_path / "site")
    done = run(tmp_path / "site", *REPORT)
    assert done.returncode == 1
    expected = f"Python finds another package `trainer` before that of cer_ext: {tmp_path / 'site' / 'trainer'}."
    assert done.stderr.startswith(expected)
    assert "Traceback" not in done.stderr


def test_a_distribution_whose_name_only_begins_alike_is_no_clash(tmp_path):
    install_ours(tmp_path / "site")
    info = tmp_path / "site" / "trainer_tools-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trainer-tools\nVersion: 1\n")
    (info / "RECORD").write_text("trainer_tools/__init__.py,,\nmy/trainer/x.py,,\n")
    assert other_owners(tmp_path / "site" / "trainer") == []
