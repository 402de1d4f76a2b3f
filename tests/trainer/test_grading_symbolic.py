"""The symbolic judge: what it may see, what it must never run, how it is stopped and replaced."""

import os
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from trainer.grading import grade, symbolic
from trainer.grading.symbolic import admissible, symbolically_equal

CODE = [
    "__import__('os').system('touch {path}')",
    "open('{path}','w')",
    "().__class__.__base__.__subclasses__()",
    "exec(chr(111))",
    "\\text{{__import__('os').system('touch {path}')}}",
    "\\operatorname{{eval}}(1)",
    "lambda: 1",
    "S(1).func",
]


@pytest.mark.parametrize("code", CODE)
def test_code_in_an_answer_is_not_run_and_does_not_reach_the_parser(code, tmp_path):
    answer = code.format(path=tmp_path / "ran")
    assert not grade(f"\\boxed{{{answer}}}", "x^2")
    assert not admissible(answer)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "attempt",
    [
        "eval('1')",
        "exec('1')",
        "compile('1', '<string>', 'exec')",
        "sympy.lambdify(sympy.Symbol('x'), sympy.Symbol('x') ** 2)",
        "os.system('true')",
        "open('{path}', 'w')",
    ],
)
def test_the_worker_ends_rather_than_run_text(attempt, tmp_path):
    """Behind the filter: were a parser to evaluate something after all, the audit hook ends the process first."""
    attempt = attempt.format(path=tmp_path / "written")
    program = (
        "import os, sys, sympy, sympy.utilities.lambdify\n"
        "from trainer.grading.symbolic_worker import refuse_code\n"
        f"def attempt(): {attempt}\n"
        "sys.addaudithook(refuse_code)\n"
        "attempt()\n"
        "print('survived')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 77, done.stderr
    assert "survived" not in done.stdout
    assert not (tmp_path / "written").exists()


def test_sympify_of_text_reads_numbers_only():
    """latex2sympy gives every number to sympify as a string: the worker takes digits and refuses all else."""
    from trainer.grading.symbolic_worker import parse_number

    assert parse_number("12.5") == Fraction(25, 2)
    for text in ("x", "1+1", "__import__('os')", "1e5", "", "0x10", "1_000", "٣"):
        with pytest.raises(ValueError, match="not a number"):
            parse_number(text)


def test_a_comparison_that_takes_too_long_is_killed_and_the_next_one_works(monkeypatch):
    monkeypatch.setattr(symbolic, "CPU_LIMIT_S", 0.3)
    worker = symbolic.Worker()
    try:
        assert worker.ask("2x", "x+x")
        first = worker.process.pid
        start = time.monotonic()
        slow = r"\prod_{k=1}^{100000000} \sin(k)"  # would run for hours; the filter refuses it, the worker must survive
        assert not admissible(slow)
        assert not worker.ask(slow, r"\sum_{k=1}^{100000000} \frac{\sin(k)}{k+\pi}")
        assert time.monotonic() - start < 30
        assert worker.ask("2x", "x+x")
        assert worker.process.pid != first
    finally:
        worker.stop()


def test_a_worker_that_stands_still_is_replaced(monkeypatch):
    import signal

    worker = symbolic.Worker()
    try:
        assert worker.ask("2x", "x+x")
        monkeypatch.setattr(symbolic, "WALL_LIMIT_S", 0.5)
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert not worker.ask("3x", "x+2x")
        monkeypatch.undo()
        assert worker.ask("3x", "x+2x")
    finally:
        worker.stop()


def test_grading_works_from_any_thread():
    verdicts = {}

    def work(k):
        sine = r"\sin x"  # no polynomial: the judge is asked
        verdicts[k] = tuple(grade(rf"\boxed{{{j}{sine}+{sine}}}", f"{k + 1}{sine}") for j in (k, k + 1))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(2, 10), (True, False))


def test_the_worker_ends_with_its_process_and_importing_starts_none():
    program = (
        "from trainer.grading import grade, symbolic\n"
        "import sys\n"
        "assert not symbolic._workers and 'sympy' not in sys.modules and 'torch' not in sys.modules\n"
        "assert grade(r'\\boxed{\\sin x+\\sin x}', r'2\\sin x')\n"
        "print(next(iter(symbolic._workers.values())).process.pid)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_symbolic_judge_is_exact_where_math_verify_rounds():
    assert symbolically_equal(r"\frac{\pi}{4}", r"0.25\pi")
    assert not symbolically_equal(r"\frac{\pi}{10^{9}}", r"\frac{\pi}{10^{8}}")
    assert not symbolically_equal(r"\frac{\pi}{10^{18}}", r"\frac{\pi}{10^{19}}")
    assert not symbolically_equal(r"0.333333x", r"\frac{x}{3}")


def test_both_sides_have_the_same_imaginary_unit():
    assert symbolically_equal(r"e^{i\pi}", "-1", imaginary=True)
    assert not symbolically_equal(r"e^{i\pi}", "-1", imaginary=False)
    assert symbolically_equal(r"\sqrt{3}-5 i", r"-5i+\sqrt{3}", imaginary=True)
    assert symbolically_equal(r"\sqrt{3}-5 i", r"-5i+\sqrt{3}", imaginary=False)
    assert not symbolically_equal(r"\sqrt{3}-5i", r"\sqrt{3}+5i", imaginary=True)
