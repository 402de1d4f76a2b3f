"""A run with skips is counted; under CI=true an unknown reason fails it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASES = {
    "known": "import pytest\ndef test_a(): pytest.skip('no GPU here')\ndef test_b(): pass\n",
    "unknown": "import pytest\n@pytest.mark.skipif(True, reason='no chromium here')\ndef test_a(): pass\n",
    "tool": "import pytest\ndef test_a(): pytest.skip('no clang++ here')\n",
    "module": "import pytest\npytest.importorskip('no_such_package')\ndef test_a(): pass\n",
    "xfail": "import pytest\n@pytest.mark.xfail\ndef test_a(): assert False\n",
}


def run(directory: Path, case: str, *, ci: str, without_tools: str = "") -> tuple[int, str]:
    (directory / "test_it.py").write_text(CASES[case])
    (directory / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nfrom skip_census import pytest_configure\n"
    )
    environment = {**os.environ, "CI": ci, "PYTEST_ADDOPTS": "", "CER_CI_WITHOUT_TOOLS": without_tools}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(directory), str(directory)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=directory,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("case", "ci", "code", "said"),
    [
        ("known", "true", 0, r"   1  no GPU here"),
        ("unknown", "", 0, r"   1  no chromium here"),
        ("unknown", "true", 1, r"   1  UNKNOWN no chromium here"),
        ("module", "true", 1, r"   1  UNKNOWN could not import 'no_such_package'"),
    ],
)
def test_reasons_are_counted_and_unknown_ones_fail_in_ci(tmp_path, case, ci, code, said):
    returned, output = run(tmp_path, case, ci=ci)
    assert returned == code, output
    assert re.search(f"^{re.escape(said)}", output, re.MULTILINE), output
    assert ("in CI a reason must be in known_skips.txt" in output) == (code == 1)


@pytest.mark.parametrize(("without_tools", "code"), [("", 1), ("1", 0)])
def test_a_missing_tool_is_known_only_where_ci_could_install_none(tmp_path, without_tools, code):
    returned, output = run(tmp_path, "tool", ci="true", without_tools=without_tools)
    assert returned == code, output
    assert ("UNKNOWN no clang++ here" in output) == (code == 1)


def test_an_expected_failure_is_no_skip(tmp_path):
    returned, output = run(tmp_path, "xfail", ci="true")
    assert returned == 0
    assert "skipped, by reason" not in output


def test_every_known_reason_is_some_tests_reason():
    from skip_census import known_patterns

    sources = "\n".join(path.read_text("utf-8") for path in TESTS.rglob("*.py") if path != Path(__file__))
    for pattern in known_patterns(without_tools=True):
        assert pattern.rstrip("*").strip() in sources, f"{pattern}: no test is skipped for this any more"
