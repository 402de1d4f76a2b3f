"""Every example runs as it stands, on small sizes, and comes to what it says."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from trainer.experiment.warm_start import WarmStartSettings, warm_start
from trainer.records.record_files import read_records

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 120  # enough for some answers to be right


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def model(cache) -> str:
    """The embedded model after a shorter warm start than the examples' own."""
    return str(warm_start(WarmStartSettings(steps=STEPS), cache))


def test_every_example_is_tested_and_described():
    names = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
    assert names == [
        "cer_in_a_notebook.ipynb",
        "cer_in_trl.py",
        "kernels_alone.py",
        "own_reward.py",
        "score_and_draw.py",
    ]
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    for name in names:
        assert name in page


def test_kernels_alone():
    found = load("kernels_alone").main()
    mask = found["mask"]
    torch.testing.assert_close(found["entropy"][mask], found["plain"][mask], rtol=1e-5, atol=1e-6)
    assert (found["entropy"][~mask] == 0).all()
    mean = found["plain"][0].mean().item()
    assert found["reward"].tolist() == pytest.approx([1 + math.exp(-mean) / 2, 0.0], rel=1e-6)
    assert (found["gradient"][1, 5:] == 0).all()
    assert (found["gradient"][0] != 0).any()


def test_cer_in_trl(model, tmp_path, capsys):
    trainer = load("cer_in_trl").main(["--model", model, "--steps", "2", "--output", str(tmp_path)])
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    for entry in logged:  # the mean of 1 + exp(-TECA)/2 over the right answers
        assert 0 < entry["accuracy"] < 1
        assert entry["accuracy"] < entry["reward"] < 1.5 * entry["accuracy"]
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["step", "reward"])
    assert [float(value) for value in lines[start + 1].split()[:2]] == [1, pytest.approx(logged[0]["reward"], abs=1e-3)]


def test_own_reward_is_what_its_equation_says():
    decisive = load("own_reward").decisive
    found = decisive(
        ["\\boxed{4}", "\\boxed{4}", "\\boxed{5}", "\\boxed{5}"],
        ["4", "4", "4", None],
        teca=[0.0, math.log(2), 0.0, 0.0],
        completion_ids=[[0] * 20, [0] * 64, [0], [0]],
    )
    assert found == [1.5, pytest.approx(1 + 0.5 * 0.5 * 0.5), 0.0, None]


def test_own_reward_runs_in_the_program(model, cache, tmp_path, capsys):
    sizes = "--max_steps 1 --held_out_problems 8 --max_completion_length 64 --report_to none --save_strategy no"
    sizes += f" --warm_start_steps {STEPS} --per_device_train_batch_size 16"
    places = ["--cache_dir", str(cache), "--output_dir", str(tmp_path / "run")]
    assert load("own_reward").main([*sizes.split(), *places]) == 0
    assert "own_reward" in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")


def test_score_and_draw(model, tmp_path, capsys):
    output = load("score_and_draw").main(["--model", model, "--output", str(tmp_path / "out")])
    records = {record["id"]: record for record in read_records(output)}
    assert set(records) == {"long", "short"}
    assert records["long"]["response_length"] > records["short"]["response_length"]
    for record in records.values():
        assert record["is_correct"]
        assert record["teca"][-1] == pytest.approx(sum(record["token_entropies"]) / record["response_length"], rel=1e-4)
    names = {path.name for path in (output / "figures").iterdir()}
    assert "teca-mean.png" in names
    assert any(re.fullmatch(r"tokens-.*\.html", name) for name in names)
    assert f"long: {records['long']['response_length']} tokens, TECA" in capsys.readouterr().out


def test_the_notebook_runs_and_holds_no_outputs(model, tmp_path, monkeypatch):
    """Its code cells, in order, as one script; lines for pip (%) are the reader's."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "cer_in_a_notebook.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    text = "\n".join("".join(line for line in cell["source"] if not line.startswith("%")) for cell in code)
    assert "STEPS = 20" in text
    assert "MODEL = None" in text
    names: dict = {"display": lambda shown: None}
    exec(
        compile(
            text.replace("STEPS = 20", "STEPS = 1").replace("MODEL = None", f"MODEL = {model!r}"), "notebook", "exec"
        ),
        names,
    )
    assert len(names["log"]) == 1
    assert names["before"]["entropy"].shape == (1, len(names["before"]["tokens"]))
    assert len(names["figure"].axes) == 2
