"""A process that is gone, named by those that are left.

A collective whose peer was killed (by the kernel for want of memory, by a scheduler, by hand) fails on every other
process, wherever it stands: in a reward that compares a group, in the backward pass, in a barrier of a checkpoint. The
error names an address. Here: from such an error to the rank, the process id and the machine, of which all told each
other at the start.

In: the error, and the list made at the start. Out: what to say. On its own machine a process sees who is gone; of other
machines it can say that it was one of theirs.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

# Sockets close while a killed process is being taken apart; a moment later it is gone, or a zombie.
PATIENCE_S = 2.0
_TEXTS = ("connection closed by peer", "connection reset by peer", "gloo/transport", "broken pipe", "socket closed")


def connection_broke(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a collective or a store whose other end is gone."""
    while error is not None:
        if isinstance(error, dist.DistError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


class Process(NamedTuple):
    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def is_gone(self) -> bool:
        """Of a process on this machine: ended, or a zombie whose parent has not looked yet."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return not _can_be_signalled(self.pid)
        return stat.rpartition(")")[2].split()[0] in "ZXx"


def _can_be_signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


class Processes:
    """Every process of the run."""

    def __init__(self) -> None:
        self.all: list[Process] = []

    def introduce(self) -> None:
        """Each tells all others who it is; every process calls this at the same point."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        found: list[Process | None] = [None] * dist.get_world_size()
        dist.all_gather_object(found, Process(dist.get_rank(), socket.gethostname(), os.getpid()))
        self.all = [process for process in found if process is not None]

    def explain(self, error: BaseException) -> str | None:
        """Who is gone, where an error says that somebody is; None for other errors."""
        if not self.all or not connection_broke(error):
            return None
        here = [process for process in self.all if process.host == socket.gethostname()]
        until = time.monotonic() + PATIENCE_S
        while not (gone := [process for process in here if process.is_gone()]) and time.monotonic() < until:
            time.sleep(0.02)
        if gone:
            return (
                f"Training stopped: lost {' and '.join(map(str, gone))}. It was killed (out of memory, a scheduler's "
                "limit, a signal) or failed by itself: its own last lines, or the launcher's, say which."
            )
        elsewhere = sorted({process.host for process in self.all} - {process.host for process in here})
        where = f"one on {', '.join(elsewhere)}: the launcher there says which" if elsewhere else "all are still there"
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"Training stopped: the connection between processes broke; {where} ({first_line})."
