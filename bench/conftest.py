"""Options and fixtures of the benchmarks: `pytest bench --benchmark-json=FILE`.

pytest-benchmark collects, times ours and writes the file; bench/comparison.py times the peers beside it. The file
also names the machine, the comparisons left out for lack of time, and the peers that could not be loaded.
"""

from __future__ import annotations

import time

import pytest
import torch

from bench import timing

LEFT_OUT = pytest.StashKey[list[str]]()
PEERS_NOT_HERE = pytest.StashKey[dict[str, str]]()
DEADLINE = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cer_ext benchmarks")
    group.addoption("--size", choices=("full", "smoke"), default="full", help="smoke: tiny shapes, to see that it runs")
    group.addoption("--rounds", type=int, default=9, help="interleaved rounds per comparison (default 9)")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    group.addoption(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU seconds of this process, on a shared machine"
    )
    group.addoption("--tokens", type=int, help="rows of every head, instead of those of bench/shapes.py")
    group.addoption("--minutes", type=float, help="begin no further comparison after so long (default: no limit)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--clock") == "cpu":
        timing.cpu_clock = time.process_time
    minutes = config.getoption("--minutes")
    config.stash[LEFT_OUT], config.stash[PEERS_NOT_HERE] = [], {}
    config.stash[DEADLINE] = float("inf") if minutes is None else time.monotonic() + 60 * minutes


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:  # ours is timed by the clock of its peers
        item.add_marker(pytest.mark.benchmark(timer=timing.clock(torch.device(config.getoption("--device")))))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Replaces details that identify a person's machine by device, driver and versions."""
    from bench.machine import machine_info as described

    rehearsal = config.getoption("--size") == "smoke"
    machine_info.clear()
    machine_info.update(described(torch.device(config.getoption("--device")), rehearsal=rehearsal))
    if config.getoption("--clock") == "cpu":
        machine_info["clock"] = "CPU seconds of the process, on a shared machine"


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    output_json["left_out"] = config.stash[LEFT_OUT]
    output_json["peers_not_here"] = config.stash[PEERS_NOT_HERE]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from bench import shapes

    device, size = torch.device(metafunc.config.getoption("--device")), metafunc.config.getoption("--size")
    for kind in ("logits", "hidden"):
        name = f"{kind}_head"
        if name in metafunc.fixturenames:
            # Module scope: all that is timed of one shape comes before the next shape, should the time run out.
            tokens = metafunc.config.getoption("--tokens")
            heads = [head._replace(tokens=tokens or head.tokens) for head in shapes.heads(kind, size, device)]
            metafunc.parametrize(name, heads, ids=str, scope="module")
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
def in_time(request: pytest.FixtureRequest) -> None:
    """Skips a comparison for which the time is up, and names it in the file."""
    if time.monotonic() > request.config.stash[DEADLINE]:
        request.config.stash[LEFT_OUT].append(request.node.name)
        pytest.skip("the time was up")


@pytest.fixture
def head_peers(request: pytest.FixtureRequest, device: torch.device) -> dict:
    """The heads of other projects that load here, by name; those that do not are named in the file."""
    from bench import peers

    heads, missing = peers.heads(device)
    request.config.stash[PEERS_NOT_HERE] |= missing
    return heads


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    for name, why in config.stash[PEERS_NOT_HERE].items():
        terminalreporter.write_line(f"not here: {name}: {why}")
    for name in config.stash[LEFT_OUT]:
        terminalreporter.write_line(f"left out, the time was up: {name}")
