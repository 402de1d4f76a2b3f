"""Skipped tests are counted, and in CI every reason must be a known one.

In: the reports of a test run, known_skips.txt. Out: a list of reasons with their numbers. Under CI=true the run fails
where a reason is not in the file: a tool that was not installed, or an import that broke, would go unseen otherwise.
Lines that begin with "tool:" count only under CER_CI_WITHOUT_TOOLS=1, which .ci/run sets, and says so, where the
distribution's packages could not be installed: that is the machine's failure, and not the code's.
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from pathlib import Path

import pytest

KNOWN = Path(__file__).with_name("known_skips.txt")


def known_patterns(path: Path = KNOWN, *, without_tools: bool = False) -> list[str]:
    """The patterns of the file, one a line; * stands for any text, # begins a comment. "tool:" lines: see above."""
    lines = [line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    tools = [line.removeprefix("tool:").strip() for line in lines if line.startswith("tool:")]
    known = [line for line in lines if line and not line.startswith("tool:")]
    return known + tools if without_tools else known


class SkipCensus:
    """A pytest plugin. Args: the known patterns, and whether an unknown reason fails the run."""

    def __init__(self, known: list[str], *, strict: bool):
        self.known, self.strict = known, strict
        self.reasons: Counter[str] = Counter()

    def _count(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.reasons[text.removeprefix("Skipped: ")] += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._count(report)

    @property
    def unknown(self) -> list[str]:
        return [
            reason for reason in self.reasons if not any(fnmatch.fnmatchcase(reason, pattern) for pattern in self.known)
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (
            self.strict
            and self.unknown
            and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if not self.reasons:
            return
        terminalreporter.section("skipped, by reason")
        for reason, number in self.reasons.most_common():
            sign = "UNKNOWN " if self.strict and reason in self.unknown else ""
            terminalreporter.write_line(f"{number:4d}  {sign}{reason}")
        if self.strict and self.unknown:
            terminalreporter.write_line(f"FAILED: in CI a reason must be in {KNOWN.name}, or the test must run")


def pytest_configure(config: pytest.Config) -> None:
    strict = os.environ.get("CI", "").lower() in ("true", "1")
    known = known_patterns(without_tools=os.environ.get("CER_CI_WITHOUT_TOOLS") == "1")
    config.pluginmanager.register(SkipCensus(known, strict=strict), "skip_census")
