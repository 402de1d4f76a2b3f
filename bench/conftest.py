"""Options and fixtures of the benchmarks, and the machine's description in every JSON record."""

import platform

import pytest
import torch

import cer_ext


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cer_ext benchmarks")
    group.addoption("--size", choices=("full", "smoke"), default="full", help="smoke: tiny shapes, to see that it runs")
    group.addoption("--rounds", type=int, default=9, help="interleaved rounds per comparison (default 9)")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from bench import shapes

    for kind in ("logits", "hidden"):
        name = f"{kind}_head"
        if name in metafunc.fixturenames:
            config = metafunc.config
            table = shapes.heads(kind, config.getoption("--size"), torch.device(config.getoption("--device")))
            metafunc.parametrize(name, table, ids=str)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--rounds")


@pytest.fixture
def size(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--size")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Replaces what names a person's machine by what a reader needs: device, driver, versions."""
    cpu = machine_info.get("cpu", {})
    machine_info.clear()
    machine_info.update(
        cpu=cpu.get("brand_raw", platform.processor()),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        cer_ext={key: cer_ext.build_info()[key] for key in ("version", "compiler", "cpu_isa", "cuda", "cuda_archs")},
    )
    for package in ("trl", "transformers"):
        machine_info[package] = __import__(package).__version__
    if config.getoption("--device") == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine_info["gpu"] = {"name": properties.name, "memory_bytes": properties.total_memory}
        machine_info["cuda"] = torch.version.cuda
