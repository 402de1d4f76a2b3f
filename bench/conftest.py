"""Options and fixtures of the benchmarks: `pytest bench --benchmark-json=FILE`.

pytest collects the cases and their shapes; timing is bench/timing.py, the file bench/comparison.py. (pyproject.toml
keeps the plugin pytest-benchmark out where it is installed: its option has the same name.)
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.comparison import File

FILE = pytest.StashKey[File]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cer_ext benchmarks")
    group.addoption("--benchmark-json", type=Path, metavar="FILE", help="write the records here, after each of them")
    group.addoption("--size", choices=("full", "smoke"), default="full", help="smoke: tiny shapes, to see that it runs")
    group.addoption("--rounds", type=int, default=9, help="interleaved rounds per comparison (default 9)")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    group.addoption("--minutes", type=float, help="begin no further comparison after so long (default: no limit)")


def pytest_configure(config: pytest.Config) -> None:
    from bench.machine import machine_info

    device, rehearsal = torch.device(config.getoption("--device")), config.getoption("--size") == "smoke"
    path, minutes = config.getoption("--benchmark-json"), config.getoption("--minutes")
    config.stash[FILE] = File(path, machine_info(device, rehearsal=rehearsal), minutes)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from bench import shapes

    device, size = torch.device(metafunc.config.getoption("--device")), metafunc.config.getoption("--size")
    for kind in ("logits", "hidden"):
        name = f"{kind}_head"
        if name in metafunc.fixturenames:
            # Module scope: all that is timed of one shape comes before the next shape, should the time run out.
            metafunc.parametrize(name, shapes.heads(kind, size, device), ids=str, scope="module")
    if "teca_shape" in metafunc.fixturenames:
        table = shapes.TECA["smoke" if size == "smoke" else device.type]
        metafunc.parametrize("teca_shape", table, ids=lambda shape: "x".join(map(str, shape)))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--rounds")


@pytest.fixture
def size(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--size")


@pytest.fixture(autouse=True)
def record(request: pytest.FixtureRequest):
    """{"group", "name", "extra_info"}: what the comparison fills, and what the file gets if it did."""
    file = request.config.stash[FILE]
    if file.out_of_time():
        file.content["left_out"].append(request.node.name)
        file.write()
        pytest.skip("the time was up")
    made = {"group": "", "name": request.node.name, "extra_info": {}}
    yield made
    if made["extra_info"]:
        file.content["benchmarks"].append(made)
        file.write()


@pytest.fixture
def head_peers(request: pytest.FixtureRequest, device: torch.device) -> dict:
    """The heads of other projects that load here, by name; those that do not are named in the file."""
    from bench import peers

    heads, missing = peers.heads(device)
    request.config.stash[FILE].content["peers_not_here"] |= missing
    return heads


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """The table of what was measured."""
    from bench import records, table

    file = config.stash[FILE]
    if file.content["benchmarks"]:
        terminalreporter.write_line("")
        terminalreporter.write_line(table.table(records.results("", file.content)))
    for name, why in file.content["peers_not_here"].items():
        terminalreporter.write_line(f"not here: {name}: {why}")
    if file.path is not None:
        terminalreporter.write_line(f"records: {file.path}")
