"""No token of a command line appears in the console, a log, a checkpoint or a record."""

import os

import pytest
from small_runs import small_options

from trainer import grpo
from trainer.training import arguments, secrets

TOKEN = "hf_SeCrEtSeCrEtSeCrEt"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")  # restored afterwards


@pytest.mark.parametrize("form", [["--hub_token", TOKEN], [f"--hub_token={TOKEN}"], ["--hub-token", TOKEN]])
def test_token_is_in_nothing_that_a_run_writes_or_says(tmp_path, capfd, form):
    options = small_options(tmp_path, "--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1", *form)
    options[options.index("--report_to") + 1] = "tensorboard"
    assert grpo.main(options) == 0
    assert os.environ["HF_TOKEN"] == TOKEN  # where huggingface_hub finds it
    assert grpo.main(options) == 2  # an error
    said = "".join(capfd.readouterr())
    assert TOKEN not in said
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert (tmp_path / "run" / "checkpoint-1" / "training_args.bin") in files
    assert any("tfevents" in path.name for path in files)
    assert [str(path) for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_command_to_go_on_with_leaves_a_place_for_the_token():
    for form in (["--hub_token", TOKEN], [f"--hub_token={TOKEN}"], ["--hub-token", TOKEN]):
        told = arguments.command_without_resume(["--seed", "1", *form, "--max_steps", "3"])
        assert TOKEN not in told
        assert told.startswith("python -m trainer.grpo --seed 1 ")
        assert told.endswith(" --max_steps 3")
        assert "<hub_token>" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model_init_kwargs", '{"token": "hf_x"}'], "model_init_kwargs holds a token, key or password"),
        (["--vllm_server_base_url", "http://me:pw@host:8000"], "vllm_server_base_url holds a password in its URL"),
    ],
)
def test_secret_inside_of_a_value_that_trackers_write_is_refused(options, told, tmp_path, capsys):
    assert grpo.main(small_options(tmp_path, *options)) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "hf_x" not in message
    assert "me:pw" not in message


@pytest.mark.parametrize("name", ["hub_token", "--hub-token", "api_key", "wandb_api_key", "password", "client_secret"])
def test_names_of_secrets(name):
    assert secrets.is_secret(name)


@pytest.mark.parametrize("name", ["eos_token", "max_tokens", "seed", "pad_token", "num_generations", "keyword"])
def test_names_that_are_no_secrets(name):
    assert not secrets.is_secret(name)
