"""A killed process is named by those that are left, which end at once; the last checkpoint is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import split_run
import torch
from test_multi_process import TORCHRUN, environment

from trainer.training.checkpoints import complete_checkpoints, remove_leftovers
from trainer.training.lost_process import Process, Processes, connection_broke
from trainer.training.survival import RewardFailure, reward_failures


@pytest.mark.parametrize(
    ("method", "step", "rank"),
    [("_calculate_rewards", 2, 1), ("_save_grpo_state", 4, 0)],
    ids=["in a reward", "the writer, in the middle of a checkpoint"],
)
def test_the_lost_process_is_named_within_seconds_and_the_last_checkpoint_is_whole(method, step, rank, tmp_path):
    program = Path(split_run.__file__).with_name("lost_run.py")
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, str(program), str(tmp_path), method, str(step), str(rank)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=300,
    )
    seconds = time.time() - float((tmp_path / "died").read_text())
    assert done.returncode == 1
    assert seconds < 20  # 1 to 2 on a quiet machine; torchrun would wait 30 for one that does not end
    said = re.findall(r"^Training stopped: .*", done.stderr, flags=re.MULTILINE)
    assert len(said) == 1, done.stderr[-3000:]
    assert re.match(rf"Training stopped: lost rank {rank} \(process \d+ on \S+\)\. It was killed", said[0])
    assert "a reward function raised" not in done.stderr
    checkpoint = tmp_path / "lost/checkpoint-2"
    assert f"Saved: {checkpoint}\nGo on, launched as before, with" in done.stderr
    assert complete_checkpoints(tmp_path / "lost") == [checkpoint]
    if rank == 0:  # it was writing: what it left is nobody's checkpoint, and goes
        assert (tmp_path / "lost/.saving-checkpoint-4").is_dir()
        remove_leftovers(tmp_path / "lost")
        assert not list((tmp_path / "lost").glob(".saving*"))
        assert split_run.run(tmp_path, "went-on", checkpoint) == 0


def test_a_zombie_and_a_process_that_was_waited_for_are_gone_and_this_one_is_not():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    process = Process(1, "here", child.pid)
    until = time.monotonic() + 60
    while not process.is_gone() and time.monotonic() < until:  # a zombie until waited for
        time.sleep(0.01)
    assert child.returncode is None
    assert process.is_gone()
    child.wait()
    assert process.is_gone()
    assert not Process(0, "here", os.getpid()).is_gone()


def gloo_error() -> RuntimeError:
    return RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer.")


def test_the_machine_of_others_is_named_where_all_of_this_one_are_there():
    processes = Processes()
    assert processes.explain(gloo_error()) is None  # one process: there is no other end
    here = os.uname().nodename
    processes.all = [Process(0, here, os.getpid()), Process(1, "node-7", 1), Process(2, "node-8", 1)]
    told = processes.explain(gloo_error())
    assert told is not None
    assert "one on node-7, node-8: the launcher there says which ([gloo" in told
    assert processes.explain(ValueError("weight: expected shards")) is None


def test_a_broken_connection_in_a_reward_is_no_fault_of_the_reward():
    with pytest.raises(RuntimeError, match="Connection reset") as raised, reward_failures(["a reward"]):
        raise gloo_error()
    assert not isinstance(raised.value, RewardFailure)
    assert connection_broke(torch.distributed.DistBackendError("NCCL error"))
    assert not connection_broke(RuntimeError("shape mismatch"))
    with pytest.raises(RewardFailure), reward_failures(["a reward"]):
        raise RuntimeError("shape mismatch")
