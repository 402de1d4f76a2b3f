"""Stopping, failing and going on: the same numbers after a resume, whole checkpoints, clear ends."""

import errno
import inspect
import json
import math
import os
import pty
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from small_runs import write_problems
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from trainer.sampling.rollout import rollout
from trainer.tiny.model import build_model
from trainer.tiny.problems import draw_problems
from trainer.tiny.tokenizer import load_tokenizer, word_tokenizer
from trainer.training import checkpoints, survival
from trainer.training.arguments import RunArguments
from trainer.training.run import build
from trainer.training.run_log import LOG_FILE, read_log


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A directory with an untrained embedded model."""
    path = tmp_path_factory.mktemp("start")
    tokenizer = word_tokenizer()
    build_model(tokenizer, seed=3).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def digits_reward(completions, **kwargs):
    """Varies between completions, so every step has a gradient."""
    return [sum(word.isdigit() for word in turn[0]["content"].split()) / 10 for turn in completions]


def make_trainer(start: Path, output_dir: Path, *, reward=digits_reward, problems: int = 8, **config):
    from transformers import Qwen3ForCausalLM

    settings = {
        "output_dir": str(output_dir),
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-2,
        "beta": 0.01,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
    }
    data = [
        {"prompt": [{"role": "user", "content": p.question}]} for p in draw_problems(problems, seed=0, held_out=False)
    ]
    return build(
        RunArguments(samples_per_log=1),
        GRPOConfig(**{**settings, **config}),
        model=Qwen3ForCausalLM.from_pretrained(str(start), dtype=torch.float32),
        processing_class=load_tokenizer(start),
        reward_funcs=[reward],
        train_dataset=Dataset.from_list(data),
        rollout_func=rollout,
    )


def parameters(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def logged(output_dir: Path, name: str = "loss") -> dict[int, float]:
    return {record["step"]: record[name] for record in read_log(output_dir / LOG_FILE) if name in record}


class StopAfter:
    """A callback-shaped stand-in for a person: sends this process a signal during step `step`."""

    def __init__(self, step: int, number: int):
        self.step, self.number = step, number

    def __call__(self, completions, trainer_state, **kwargs):
        if trainer_state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)
        return digits_reward(completions)

    __name__ = "digits_reward"


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="one update per generation"),
        # 4 updates per generation: the checkpoint of step 3 falls between two uses of the same rollouts
        pytest.param({"steps_per_generation": 4, "logging_steps": 2}, id="in the middle of a generation and of a log"),
        pytest.param({"num_iterations": 2, "gradient_accumulation_steps": 2}, id="rollouts used twice"),
        # 4 problems, 2 per generation: epochs of 2 steps, so step 3 is in the second
        pytest.param({"problems": 4}, id="in a later epoch"),
        pytest.param({"sync_ref_model": True, "ref_model_sync_steps": 2, "beta": 0.5}, id="reference that moves"),
    ],
)
def test_interrupted_run_continues_to_the_numbers_of_an_uninterrupted_one(start, tmp_path, config):
    whole = make_trainer(start, tmp_path / "whole", **config)
    assert survival.train(whole) == 0
    cut = make_trainer(start, tmp_path / "cut", reward=StopAfter(3, signal.SIGINT), **config)
    # A reward is asked for only when rollouts are made: with several updates per generation, ask at the step's start.
    if whole.args.steps_per_generation * whole.num_iterations > whole.args.gradient_accumulation_steps:
        cut.reward_funcs[0] = digits_reward
        cut.add_callback(_signal_in_step(3, signal.SIGINT))
    assert survival.train(cut) == 130
    assert cut.state.global_step == 3
    resumed = make_trainer(start, tmp_path / "cut", **config)
    checkpoint = checkpoints.resolve_resume("last", tmp_path / "cut")
    assert checkpoint.name == "checkpoint-3"
    random.seed(99), torch.manual_seed(99)  # whatever the new process drew before must not matter
    assert survival.train(resumed, resume_from_checkpoint=checkpoint) == 0
    for name in ("loss", "reward", "kl", "teca", "entropy", "grad_norm"):
        assert logged(tmp_path / "cut", name) == pytest.approx(logged(tmp_path / "whole", name), rel=1e-6, abs=1e-9), (
            name
        )
    expected, actual = parameters(whole), parameters(resumed)
    for name in expected:
        difference = (actual[name] - expected[name]).abs().max().item()
        assert difference <= 1e-7, name


def _signal_in_step(step: int, number: int):
    from transformers import TrainerCallback

    class Send(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                os.kill(os.getpid(), number)

    return Send()


def test_later_epoch_of_the_sampler_is_that_of_stock_trl():
    arguments = {"data_source": range(10), "mini_repeat_count": 2, "batch_size": 3, "repeat_count": 2}
    arguments |= {"shuffle": True, "seed": 7}
    stock = RepeatSampler(**arguments)
    epochs = [list(stock) for _ in range(3)]
    assert epochs[0] != epochs[1]
    for epoch in (2, 0, 1):
        ours = checkpoints.EpochRepeatSampler(lambda epoch=epoch: epoch, **arguments)
        assert list(ours) == epochs[epoch] == list(ours)
        assert len(ours) == len(stock)


def test_sigterm_saves_says_how_to_resume_and_exits_with_143(start, tmp_path, capsys):
    trainer = make_trainer(start, tmp_path, reward=StopAfter(2, signal.SIGTERM), save_strategy="no")
    assert survival.train(trainer, command="python -m trainer.grpo --seed 1") == 143
    told = capsys.readouterr().err
    assert f"python -m trainer.grpo --seed 1 --resume_from_checkpoint {tmp_path / 'checkpoint-2'}" in told
    assert checkpoints.is_complete(tmp_path / "checkpoint-2")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # given back


@pytest.fixture
def hangup_is_heard():
    """As in a terminal: whoever runs the tests may have been told to ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_is_heard")
def test_hangup_is_a_stop_like_sigterm_and_is_given_back(start, tmp_path, capsys):
    trainer = make_trainer(start, tmp_path, reward=StopAfter(2, signal.SIGHUP), save_strategy="no")
    before = signal.getsignal(signal.SIGHUP)
    assert survival.train(trainer) == 128 + signal.SIGHUP == 129
    assert checkpoints.is_complete(tmp_path / "checkpoint-2")
    assert signal.getsignal(signal.SIGHUP) == before


def test_hangup_that_is_ignored_stays_ignored(start, tmp_path):
    """nohup: the run goes on to its end."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make_trainer(start, tmp_path, reward=StopAfter(1, signal.SIGHUP), save_strategy="no", max_steps=2)
        assert survival.train(trainer) == 0
        assert trainer.state.global_step == 2
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_is_heard")
def test_lost_terminal_ends_a_run_with_its_checkpoint_and_last_words(tmp_path):
    """A real terminal is closed under a run of the command, as a dropped ssh does it."""
    data = write_problems(tmp_path / "train.jsonl")
    options = ["--config", "smoke_gsm8k", "--dataset", str(data), "--output_dir", str(tmp_path / "run")]
    options += ["--max_steps", "1000", "--max_completion_length", "4", "--report_to", "none"]
    ours, theirs = pty.openpty()
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_A_TERMINAL, *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    os.close(theirs)
    told, deadline = b"", time.monotonic() + 120
    while b"     2  " not in told and time.monotonic() < deadline:  # the table's row of the second step
        told += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(120) == 129
    (saved,) = checkpoints.complete_checkpoints(tmp_path / "run")
    last_words = (tmp_path / "run" / survival.AFTER_HANGUP).read_text()
    assert f"--resume_from_checkpoint {saved}" in last_words


_ON_A_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal is this session's: its end is a hangup
from trainer import grpo
sys.exit(grpo.main(sys.argv[1:]))
"""


def test_second_signal_stops_at_once_and_keeps_the_last_checkpoint(start, tmp_path):
    class Impatient(StopAfter):
        def __call__(self, completions, trainer_state, **kwargs):
            super().__call__(completions, trainer_state)
            return super().__call__(completions, trainer_state)

    trainer = make_trainer(start, tmp_path, reward=Impatient(3, signal.SIGINT))
    assert survival.train(trainer) == 130
    assert [path.name for path in checkpoints.complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


class FailAt:
    __name__ = "failing_reward"

    def __init__(self, step: int, result):
        self.step, self.result = step, result

    def __call__(self, completions, trainer_state, **kwargs):
        if trainer_state.global_step != self.step - 1:
            return digits_reward(completions)
        if isinstance(self.result, Exception):
            raise self.result
        if callable(self.result):
            self.result()
        return [self.result] * len(completions)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (KeyError("gold"), "a reward function raised (of: failing_reward): KeyError: 'gold'"),
        (float("nan"), "no reward function gave a number for any of 8 completions"),
        (float("inf"), "the reward function failing_reward gave an infinite reward"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory (CUDA out of memory."),
        (lambda: torch.empty(1 << 50), "out of memory ("),  # torch's own error, for 4 PiB
        (lambda: Path("/dev/full").write_text("x"), "the disk is full ([Errno 28] No space left on device"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_failure_in_a_step_keeps_the_state_before_it_and_goes_on_to_the_same_numbers(
    start, tmp_path, capsys, result, told
):
    """Nothing was to be saved before the failure: the state of the step before it is."""
    config = {"save_strategy": "no", "max_steps": 4}
    trainer = make_trainer(start, tmp_path / "cut", reward=FailAt(3, result), **config)
    assert survival.train(trainer) == 1
    message = capsys.readouterr().err
    assert told in message
    assert "checkpoint-2" in message
    assert "--resume_from_checkpoint" in message
    if isinstance(result, float) and math.isinf(result):  # once is enough
        resumed = make_trainer(start, tmp_path / "cut", **config)
        assert survival.train(resumed, resume_from_checkpoint=tmp_path / "cut" / "checkpoint-2") == 0
        whole = make_trainer(start, tmp_path / "whole", **config)
        assert survival.train(whole) == 0
        assert logged(tmp_path / "cut") == pytest.approx(logged(tmp_path / "whole"), rel=1e-6, abs=1e-9)
        torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0, atol=1e-7)


class Silent:
    """No opinion on any completion in the given steps."""

    __name__ = "silent_reward"

    def __init__(self, *steps: int):
        self.steps = steps

    def __call__(self, completions, trainer_state, **kwargs):
        if trainer_state.global_step + 1 in self.steps:
            return [None] * len(completions)
        return digits_reward(completions)


def test_batch_without_an_opinion_moves_nothing_and_the_run_goes_on(start, tmp_path, capsys):
    trainer = make_trainer(start, tmp_path, reward=Silent(2, 4), max_steps=4, save_strategy="no", beta=0.0)
    weights = {}
    trainer.add_callback(_at_step_end(lambda step: weights.__setitem__(step, parameters(trainer))))
    assert survival.train(trainer) == 0
    assert "Step 2: no reward function has an opinion (None) on any of 8 completions" in capsys.readouterr().err
    norms = logged(tmp_path, "grad_norm")
    assert norms[2] == norms[4] == 0.0
    assert norms[1] > 0
    assert norms[3] > 0


def _at_step_end(function):
    from transformers import TrainerCallback

    class Call(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            function(state.global_step)

    return Call()


def test_silence_that_lasts_is_a_failure(start, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(survival, "MOST_BATCHES_WITHOUT_OPINION", 3)
    trainer = make_trainer(start, tmp_path, reward=Silent(*range(1, 9)), max_steps=8, save_strategy="no")
    assert survival.train(trainer) == 1
    assert "all None) on any completion of the last 3 batches: silent_reward" in capsys.readouterr().err
    assert trainer.state.global_step == 2


def test_rewards_whose_spread_overflows_are_a_failure_not_a_loss_of_zero(start, tmp_path, capsys):
    def huge_reward(completions, **kwargs):
        return [1e30 * (-1) ** i for i in range(len(completions))]

    trainer = make_trainer(start, tmp_path, reward=huge_reward, max_steps=1, save_strategy="no")
    assert survival.train(trainer) == 1
    assert "the spread of the rewards is infinite in float32 (they go from -1e+30 to 1e+30)" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_loss_or_gradient_stops_before_the_weights_change(start, tmp_path, capsys, what):
    trainer = make_trainer(start, tmp_path, max_steps=4)
    weights = {}
    head = trainer.model.model.layers[0].mlp.down_proj.weight

    def poison(gradient):
        return gradient * float("nan") if trainer.state.global_step == 2 else gradient

    inner = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        loss = inner(*args, **kwargs)
        if trainer.state.global_step == 2:
            weights.update(parameters(trainer))
            return loss * float("nan") if what == "loss" else loss
        return loss

    trainer.compute_loss = compute_loss
    if what == "gradient":
        head.register_hook(poison)
    assert survival.train(trainer) == 1
    assert f"the {'loss is' if what == 'loss' else chr(103) + 'radient'}" in capsys.readouterr().err
    torch.testing.assert_close(parameters(trainer), weights, rtol=0, atol=0)
    assert checkpoints.complete_checkpoints(tmp_path)[-1].name == "checkpoint-2"


def test_write_error_while_saving_leaves_no_half_checkpoint_and_the_last_good_one(start, tmp_path, capsys):
    """A real write error: the file size limit of this process lies between a small file and the model's."""
    trainer = make_trainer(start, tmp_path, max_steps=3)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = trainer._save_checkpoint

    def save_with_less_room(model, trial):
        if trainer.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        save(model, trial)

    trainer._save_checkpoint = save_with_less_room
    try:
        code = survival.train(trainer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 1
    told = capsys.readouterr().err
    assert "the disk is full" in told
    assert str(tmp_path / "checkpoint-1") in told
    left = {path.name for path in tmp_path.iterdir() if "checkpoint" in path.name}
    assert left == {"checkpoint-1"}


@pytest.mark.parametrize("elsewhere", [True, False], ids=["room elsewhere", "no room at all"])
def test_full_disk_at_the_last_save_leaves_the_model_of_before_and_says_where_the_new_one_is(
    start, tmp_path, capsys, monkeypatch, elsewhere
):
    trainer = make_trainer(start, tmp_path / "run", max_steps=2, save_strategy="no")
    assert survival.train(trainer) == 0
    (tmp_path / "run" / "final").mkdir()
    (tmp_path / "run" / "final" / "model.safetensors").write_text("of an earlier run")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(survival.tempfile, "tempdir", str(tmp_path / "temporary"))
    limit, save = resource.getrlimit(resource.RLIMIT_FSIZE), trainer.save_model

    def save_with_less_room(place):
        if "run" in Path(place).parts or not elsewhere:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        try:
            save(place)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    trainer.save_model = save_with_less_room
    assert survival.save_final(trainer, command="python -m trainer.grpo") == 1
    told = capsys.readouterr().err
    assert "The model is trained, but could not be saved as final" in told
    assert (tmp_path / "run" / "final" / "model.safetensors").read_text() == "of an earlier run"
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []
    found = list((tmp_path / "temporary").iterdir())
    if elsewhere:
        (place,) = found
        assert f"It is saved in {place} instead" in told
        saved = load_file(place / "model.safetensors")
        expected = parameters(trainer)
        for name in saved:
            torch.testing.assert_close(saved[name], expected[name], rtol=0, atol=0)
    else:
        assert found == []
        assert "Nor elsewhere: " in told


def test_error_of_a_full_disk_is_recognised_by_its_real_exceptions(tmp_path):
    with pytest.raises(OSError) as full:
        Path("/dev/full").write_text("x")
    assert survival.is_disk_full(full.value)
    with pytest.raises(Exception) as saving:
        torch.save(torch.zeros(100_000), "/dev/full")
    assert survival.is_disk_full(saving.value)
    assert not survival.is_disk_full(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not survival.is_disk_full(RuntimeError("shape mismatch"))


def test_unknown_error_passes_through_with_its_last_good_state(start, tmp_path, capsys):
    trainer = make_trainer(start, tmp_path, max_steps=3)
    inner = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        if trainer.state.global_step == 2:
            raise RuntimeError("a bug")
        return inner(*args, **kwargs)

    trainer.compute_loss = compute_loss
    with pytest.raises(RuntimeError, match="a bug"):
        survival.train(trainer)
    assert "checkpoint-2" in capsys.readouterr().err


def test_incomplete_checkpoints_are_passed_over(tmp_path):
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_st')  # torn
    (tmp_path / f"{checkpoints.STAGING_PREFIX}checkpoint-20" / "checkpoint-20").mkdir(parents=True)
    assert checkpoints.resolve_resume("last", tmp_path) == tmp_path / "checkpoint-5"
    assert checkpoints.resolve_resume(None, tmp_path) is None
    with pytest.raises(ValueError, match=r"not a complete checkpoint .*checkpoint-5"):
        checkpoints.resolve_resume(str(tmp_path / "checkpoint-10"), tmp_path)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoints.resolve_resume("last", tmp_path / "checkpoint-5")


def test_leftovers_of_a_crash_are_removed_and_a_replaced_checkpoint_comes_back(tmp_path):
    prefix = checkpoints.STAGING_PREFIX
    (tmp_path / f"{prefix}checkpoint-2" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / f"{prefix}replaced-checkpoint-1").mkdir()  # the crash came between the two renames
    (tmp_path / f"{prefix}replaced-checkpoint-1" / "trainer_state.json").write_text("{}")
    checkpoints.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_save_total_limit_counts_a_runs_own_checkpoints(start, tmp_path):
    first = make_trainer(start, tmp_path / "older", max_steps=1)
    assert survival.train(first) == 0
    shutil.copytree(tmp_path / "older" / "checkpoint-1", tmp_path / "run" / "checkpoint-900")
    trainer = make_trainer(start, tmp_path / "run", max_steps=3, save_total_limit=1)
    assert survival.train(trainer) == 0
    left = [path.name for path in checkpoints.complete_checkpoints(tmp_path / "run")]
    assert left == ["checkpoint-3", "checkpoint-900"]
    assert [path.name for path in trainer.own_checkpoints()] == ["checkpoint-3"]


def test_failure_names_and_saves_its_own_checkpoint_beside_an_older_runs(start, tmp_path, capsys):
    older = make_trainer(start, tmp_path / "older", max_steps=3)
    assert survival.train(older) == 0
    shutil.copytree(tmp_path / "older", tmp_path / "run")
    trainer = make_trainer(start, tmp_path / "run", reward=FailAt(2, KeyError("gold")), save_strategy="no")
    assert survival.train(trainer) == 1
    told = capsys.readouterr().err
    assert f"--resume_from_checkpoint {tmp_path / 'run' / 'checkpoint-1'}" in told
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "run.json").read_text())
    assert state["run"] == trainer.run_id != older.run_id


def test_older_checkpoints_go_only_after_the_new_one_is_there(start, tmp_path):
    trainer = make_trainer(start, tmp_path, max_steps=4, save_total_limit=2)
    assert survival.train(trainer) == 0
    assert [path.name for path in checkpoints.complete_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_privates_that_checkpoints_survival_and_measurements_rest_on_are_there(start, tmp_path):
    """Named here so that a new version of TRL or transformers fails in this test, not in a run of days."""
    trainer = make_trainer(start, tmp_path, save_strategy="no", max_steps=1)
    stock = GRPOTrainer
    for method in (
        "_get_train_sampler",
        "_run_epoch",
        "_get_output_dir",
        "_save_checkpoint",
        "_load_optimizer_and_scheduler",
        "_get_grad_norm",
        "_calculate_rewards",
        "_generate_single_turn",
        "_generate_and_score_completions",
    ):
        assert callable(getattr(stock, method, None)), f"{stock.__name__}.{method} is gone"
    assert list(inspect.signature(stock._save_checkpoint).parameters) == ["self", "model", "trial"]
    assert list(inspect.signature(stock._get_grad_norm).parameters) == ["self", "model", "grad_norm"]
    assert list(inspect.signature(stock._calculate_rewards).parameters)[1:] == [
        "inputs",
        "prompts",
        "completions",
        "completion_ids_list",
    ]
    assert survival.train(trainer) == 0
    for attribute in ("_step", "_buffered_inputs", "_metrics", "_pending_extra_logs", "_tr_loss", "ref_model"):
        assert hasattr(trainer, attribute), f"a trained {stock.__name__} has no {attribute}"
    assert trainer._step == 1
    assert trainer._globalstep_last_logged == 1
    assert isinstance(trainer._buffered_inputs, list)
    assert set(RepeatSampler(range(4), 2).__dict__) >= {
        "data_source",
        "mini_repeat_count",
        "batch_size",
        "repeat_count",
        "shuffle",
        "seed",
        "num_samples",
        "generator",
    }
