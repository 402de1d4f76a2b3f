r"""Symbolic equality as a last resort: a strict filter here, math-verify in a process that can be killed.

In: two normalised LaTeX expressions. Out: True only if both pass the filter and math-verify shows them equal in time.

The filter admits known commands, single letters (at most three in a row), short numbers, modest powers: text that is no
answer never reaches a parser. The worker (symbolic_worker.py) is started at first use as a fresh interpreter, not by
fork, so it is safe beside CUDA and threads; it serves one question at a time from any thread, is replaced after a kill,
and ends when its stdin closes, that is, with this process at the latest.
"""

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
from functools import lru_cache

CPU_LIMIT_S = 2.0  # per comparison, counted in CPU time so that a busy machine does not change a grade
WALL_LIMIT_S = 20.0  # the backstop, for a worker that neither computes nor answers
START_LIMIT_S = 120.0
QUESTIONS_PER_WORKER = 5000  # ANTLR's caches only grow

MAX_CHARS = 300
MAX_DEPTH = 12
MAX_DIGITS = 40
MAX_EXPONENT = 1000
MAX_EXPANSION = 64  # of a bracket, all brackets' powers multiplied: (x+1)^9 in (...)^9 counts 81
MAX_FACTORIAL = 100

_ALLOWED_CHARS = re.compile(r"[0-9A-Za-z\\{}()\[\]+\-*/^_=<>|!.,' ]*")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_ALLOWED_COMMANDS = frozenset(
    r"""frac sqrt pi infty pm mp le ge ne in cup cap emptyset sin cos tan cot sec csc arcsin arccos arctan
    sinh cosh tanh log ln exp binom begin end overline lfloor rfloor lceil rceil
    alpha beta gamma delta epsilon theta lambda mu phi omega sigma rho tau { } \ |""".split()  # noqa: SIM905
)
_LETTERS = re.compile(r"[A-Za-z]{4,}")
_EXPONENT = re.compile(r"([)}\]]?)\s*\^\s*[{(]?\s*[-+]?\s*([0-9]+)")
_TOWER = re.compile(r"\^\s*(?:-?[0-9A-Za-z]+\s*\^|[{(][^{}()]*\^)|\^\s*[{(][^{}()]*[{(]")
_FACTORIAL = re.compile(r"([0-9]*)\s*!")
_DECIMAL = re.compile(r"([0-9]*)\.([0-9]+)")


def admissible(latex: str) -> bool:
    """True if `latex` is plain mathematics of a size that an answer has."""
    if len(latex) > MAX_CHARS or not _ALLOWED_CHARS.fullmatch(latex):
        return False
    if any(command not in _ALLOWED_COMMANDS for command in _COMMAND.findall(latex)):
        return False
    bare = _COMMAND.sub(" ", latex).replace("{matrix}", " ")
    if _LETTERS.search(bare) or re.search(rf"[0-9]{{{MAX_DIGITS},}}", bare):
        return False
    if re.search(r"[0-9]\s+[0-9.]|[0-9)}]'|\.\.|[-+*/^_]\s*\Z", bare) or "!!" in bare.replace(
        " ", ""
    ):  # latex2sympy reads "12 13" as 12 + 13
        return False
    depth = 0
    for character in latex:
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(character, 0)
        if not 0 <= depth <= MAX_DEPTH:
            return False
    return not _TOWER.search(bare) and _grows_modestly(bare)


def _grows_modestly(latex: str) -> bool:
    """Powers and factorials that neither expand into thousands of terms nor into thousands of digits."""
    expansion = 1
    for bracket, exponent in _EXPONENT.findall(latex):
        if int(exponent) > MAX_EXPONENT:
            return False
        expansion *= max(1, int(exponent)) if bracket else 1
    return expansion <= MAX_EXPANSION and all(n and int(n) <= MAX_FACTORIAL for n in _FACTORIAL.findall(latex))


def symbolically_equal(gold: str, answer: str, *, imaginary: bool = False) -> bool:
    """Returns True if math-verify shows `answer` equal to `gold` within the limits; never raises.

    imaginary: whether i is the imaginary unit, on both sides, or a variable.
    """
    if not admissible(gold) or not admissible(answer):
        return False
    return _verdict(_exact_decimals(gold), _exact_decimals(answer), imaginary)


def _exact_decimals(latex: str) -> str:
    """0.25 as (\\frac{25}{100}): no floating-point number, hence no rounding, reaches SymPy."""
    return _DECIMAL.sub(lambda m: rf"(\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}})", latex)


@lru_cache(maxsize=8192)
def _verdict(gold: str, answer: str, imaginary: bool) -> bool:
    # One worker per process: after a fork, two must not share a pipe. setdefault is atomic: no lock is forked held.
    return _workers.setdefault(os.getpid(), Worker()).ask(gold, answer, imaginary=imaginary)


class Worker:
    """One child process and the pipe to it, started at the first question."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process: subprocess.Popen | None = None
        self.answered = 0

    def ask(self, gold: str, answer: str, *, imaginary: bool = False) -> bool:
        """Returns the worker's verdict; False, and the end of that worker, if it dies or exceeds its time."""
        with self.lock:
            if self.answered >= QUESTIONS_PER_WORKER:
                self.stop()
            if self.process is None or self.process.poll() is not None:
                self.start()
            reply = self._exchange(json.dumps([gold, answer, imaginary]).encode() + b"\n")
            self.answered += 1
            if reply not in (b"true\n", b"false\n"):
                self.stop()
            return reply == b"true\n"

    def start(self) -> None:
        self.stop()
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-m", "trainer.grading.symbolic_worker", str(CPU_LIMIT_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},  # no credentials of the trainer's
            bufsize=0,
        )
        atexit.register(self.process.kill)
        self.answered = 0
        if self._read_line(START_LIMIT_S) != b"ready\n":
            self.stop()
            raise RuntimeError(
                f"the symbolic judge did not start; are its packages there? {sys.executable} -c 'import math_verify'"
            )

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            atexit.unregister(process.kill)
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def _exchange(self, question: bytes) -> bytes:
        try:
            self.process.stdin.write(question)
        except BrokenPipeError:
            return b""
        return self._read_line(WALL_LIMIT_S)

    def _read_line(self, limit_s: float) -> bytes:
        """One reply, or b"" if the worker has died or says nothing for `limit_s` seconds."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                return b""
        return self.process.stdout.readline()  # replies are short and flushed whole


_workers: dict[int, Worker] = {}
