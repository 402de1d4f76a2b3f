"""Processes that stay: four ranks, started once, on which tests run functions of rank_programs.py.

In: the name of a function there, how many ranks take part, its arguments. Out: what it returned on each rank, in rank
order, or a Raised. A rank that does not answer in time fails the test and ends the processes; the next test gets new
ones. Gloo, one thread each.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

RANKS = 4
TIMEOUT_S = 120.0  # of one function; a machine with other work is slow to start it


class Raised(NamedTuple):
    """What a rank raised."""

    kind: str
    message: str


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(rank: int, port: int, connection: Connection) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    import rank_programs
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    groups = {size: dist.new_group(list(range(size))) for size in range(1, RANKS + 1)}
    connection.send("ready")
    while (job := connection.recv()) is not None:
        name, size, arguments = job
        try:
            answer = getattr(rank_programs, name)(groups[size], **arguments)
        except Exception as error:
            answer = Raised(type(error).__name__, str(error))
        connection.send(answer)
    dist.destroy_process_group()


class Ranks:
    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._processes: list[Any] = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        self._answers(range(RANKS))

    def _answers(self, ranks: range) -> list[Any]:
        answers = []
        for rank in ranks:
            if not self._connections[rank].poll(TIMEOUT_S):
                self.stop(kill=True)
                raise AssertionError(f"rank {rank} does not answer after {TIMEOUT_S:.0f} s: it waits for another")
            answers.append(self._connections[rank].recv())
        return answers

    def run(self, name: str, size: int, **arguments: Any) -> list[Any]:
        """What rank_programs.<name>(group, **arguments) returned on ranks 0 to size - 1."""
        if not self._processes:
            self._start()
        for rank in range(size):
            self._connections[rank].send((name, size, arguments))
        return self._answers(range(size))

    def stop(self, kill: bool = False) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            if kill:
                process.kill()
            else:
                connection.send(None)
            process.join(timeout=30)
            connection.close()
        self._connections, self._processes = [], []
