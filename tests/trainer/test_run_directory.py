"""Whose an output directory is: finished runs, older runs, two runs at once, and what is never lost."""

import json
import multiprocessing
import shutil

import pytest
import torch
from small_runs import small_options, steps_logged, weights

from trainer import grpo
from trainer.training import run_directory
from trainer.training.checkpoints import complete_checkpoints, resolve_resume

SAVING = ("--save_strategy", "steps", "--save_steps", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 2 steps with a checkpoint after each."""
    directory = tmp_path_factory.mktemp("finished")
    assert grpo.main(small_options(directory, "--max_steps", "2", *SAVING)) == 0
    return directory / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to do something to."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("max_steps", ["2", "1", "0"])
def test_resuming_a_finished_run_trains_nothing_and_saves_the_same_model(run, tmp_path, max_steps):
    before = weights(run / "checkpoint-2")
    (run / "final" / "model.safetensors").unlink()  # what was left to do
    options = small_options(tmp_path, "--max_steps", max_steps, *SAVING, "--resume_from_checkpoint", "last")
    assert grpo.main(options) == 0
    assert [path.name for path in complete_checkpoints(run)] == ["checkpoint-1", "checkpoint-2"]
    assert steps_logged(run) == [1, 2]
    torch.testing.assert_close(weights(run / "final"), before, rtol=0, atol=0)


def test_every_checkpoint_says_which_run_made_it_and_going_on_keeps_the_id(run, tmp_path):
    made = {run_directory.run_of(path) for path in complete_checkpoints(run)}
    assert made == {run_directory.run_of(run)}
    assert None not in made
    assert grpo.main(small_options(tmp_path, "--max_steps", "3", *SAVING, "--resume_from_checkpoint", "last")) == 0
    assert {run_directory.run_of(path) for path in complete_checkpoints(run)} == made
    assert steps_logged(run) == [1, 2, 3]


def test_new_run_in_the_directory_of_an_older_one_is_refused_with_the_ways_out(run, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert grpo.main(small_options(tmp_path, "--max_steps", "1", *SAVING)) == 2
    told = capsys.readouterr().err
    assert f"holds the checkpoints of another run ({run_directory.run_of(run)}, up to step 2)" in told
    for way_out in ("--resume_from_checkpoint last", "another --output_dir", "--set_aside_older_run true"):
        assert way_out in told
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert after == before


def test_older_run_is_set_aside_on_request_and_whole(run, tmp_path, capsys):
    older, old_weights = run_directory.run_of(run), weights(run / "checkpoint-2")
    options = small_options(tmp_path, "--max_steps", "1", "--seed", "5", *SAVING, "--set_aside_older_run", "true")
    assert grpo.main(options) == 0
    kept = run / "older-runs" / older
    assert f"Set aside in {kept}: checkpoint-1, checkpoint-2, final, log.jsonl" in capsys.readouterr().out
    torch.testing.assert_close(weights(kept / "checkpoint-2"), old_weights, rtol=0, atol=0)
    assert (kept / "final" / "model.safetensors").is_file()
    assert [path.name for path in complete_checkpoints(run)] == ["checkpoint-1"]
    assert resolve_resume("last", run) == run / "checkpoint-1"
    assert run_directory.run_of(run / "checkpoint-1") not in (None, older)


def test_finished_model_without_checkpoints_is_set_aside_without_being_asked(tmp_path, capsys):
    assert grpo.main(small_options(tmp_path, "--max_steps", "1")) == 0
    first = weights(tmp_path / "run" / "final")
    older = run_directory.run_of(tmp_path / "run")
    assert grpo.main(small_options(tmp_path, "--max_steps", "1", "--seed", "5")) == 0
    assert f"older-runs/{older}: final" in capsys.readouterr().out
    torch.testing.assert_close(weights(tmp_path / "run" / "older-runs" / older / "final"), first, rtol=0, atol=0)


def test_start_model_of_another_seed_is_another_model(tmp_path):
    for seed in ("1", "2"):
        assert grpo.main(small_options(tmp_path, "--max_steps", "1", "--seed", seed)) == 0
    first, second = (weights(tmp_path / "run" / f"start-seed{seed}") for seed in (1, 2))
    name = "model.embed_tokens.weight"
    assert not torch.equal(first[name], second[name])


def test_going_on_from_an_earlier_checkpoint_sets_the_later_ones_aside(run, tmp_path):
    earlier, later = str(run / "checkpoint-1"), weights(run / "checkpoint-2")
    assert grpo.main(small_options(tmp_path, "--max_steps", "1", *SAVING, "--resume_from_checkpoint", earlier)) == 0
    kept = run / "older-runs" / run_directory.run_of(run) / "checkpoint-2"
    torch.testing.assert_close(weights(kept), later, rtol=0, atol=0)
    assert [path.name for path in complete_checkpoints(run)] == ["checkpoint-1"]


def test_checkpoints_of_several_runs_have_to_be_named(run, tmp_path):
    run_directory.write_run(run / "checkpoint-2", "another")
    (run / "run.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoints of several runs: name one of .*checkpoint-1, .*checkpoint-2"):
        resolve_resume("last", run)
    run_directory.write_run(run, run_directory.run_of(run / "checkpoint-1"))  # the run that wrote here last
    assert resolve_resume("last", run) == run / "checkpoint-1"


def _hold(directory, ready, done):
    with run_directory.locked(directory, "python -m trainer.grpo --seed 7"):
        ready.set()
        done.wait(30)


def test_second_run_in_one_directory_is_refused_and_told_who_holds_it(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "run", ready, done))
    holder.start()
    try:
        assert ready.wait(30)
        assert grpo.main(small_options(tmp_path, "--max_steps", "1")) == 2
        told = capsys.readouterr().err
        assert f"is in use by process {holder.pid} on " in told
        assert "python -m trainer.grpo --seed 7" in told
    finally:
        done.set()
        holder.join(30)
    with run_directory.locked(tmp_path / "run", "after it has ended"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, done))
    holder.start()
    assert ready.wait(30)
    holder.kill()
    holder.join(30)
    with run_directory.locked(tmp_path, "the next"):
        assert "the next" in (tmp_path / "run.lock").read_text()


def test_too_few_problems_for_one_generation_are_told_before_training(tmp_path, capsys):
    assert grpo.main(small_options(tmp_path, "--max_steps", "1", count=1)) == 2
    told = capsys.readouterr().err
    assert "1 problems, but one generation takes 2 (generation_batch_size 8 / num_generations 4)" in told
    assert not (tmp_path / "run" / "final").exists()


def test_embedded_experiment_that_died_before_its_evaluation_goes_on_to_it(tmp_path, capsys):
    sizes = "--warm_start_steps 2 --max_steps 2 --held_out_problems 4 --max_completion_length 8 --save_steps 1"
    sizes += " --per_device_train_batch_size 16 --controls none --report_to none --disable_tqdm true"
    options = [*sizes.split(), "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache")]
    assert grpo.main(options) == 0
    cer = tmp_path / "run" / "cer"
    trained, result = weights(cer / "final"), json.loads((cer / "result.json").read_text())
    for name in ("result.json", "responses.jsonl"):
        (cer / name).unlink()
    assert grpo.main([*options, "--resume_from_checkpoint", "last"]) == 0
    assert [path.name for path in complete_checkpoints(cer)] == ["checkpoint-1", "checkpoint-2"]
    torch.testing.assert_close(weights(cer / "final"), trained, rtol=0, atol=0)
    assert json.loads((cer / "result.json").read_text())["summary"] == result["summary"]
    assert grpo.main(options) == 2  # and a new experiment does not write over it
    assert "holds the checkpoints of another run" in capsys.readouterr().err
    assert grpo.main([*options, "--set_aside_older_run", "true"]) == 0
    (older,) = (tmp_path / "run" / "older-runs").iterdir()
    assert {path.name for path in older.iterdir()} == {"cer", "table.md", "results.json", "curves.png"}
