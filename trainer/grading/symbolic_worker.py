"""The process that parses LaTeX with latex2sympy2_extended and compares with math-verify; started by symbolic.py alone.

In: one JSON line [gold, answer, whether i is the imaginary unit] on stdin. Out: one JSON line true or false on stdout;
first of all one line "ready".

latex2sympy turns an ANTLR tree into SymPy calls, but hands every number to SymPy as a string, which sympify gives to
parse_expr, that is, to eval. Here parse_expr is replaced by `parse_number`, which reads digits and nothing else. Behind
it stands an audit hook, which cannot be taken off again: it ends this process at the first attempt to compile source
text (but for the products of monomials that sympy.polys generates from the number of variables alone), start a program,
open a socket or write a file. Time is limited by the kernel (SIGPROF, default action: kill), so neither C code nor an
`except` can outlast it; memory by RLIMIT_AS.
"""

import json
import os
import re
import resource
import signal
import sys

MEMORY_BYTES = 2 << 30
RELATIVE_TOLERANCE = 1e-9  # between numbers that math-verify calls equal; it compares with an absolute bound

_FORBIDDEN = (
    "os.exec",
    "os.posix_spawn",
    "os.system",
    "os.fork",
    "subprocess.",
    "socket.",
    "pty.",
    "ctypes.",
    "shutil.",
)


def parse_number(text: str, *arguments, **options):
    """Stands in for SymPy's parse_expr, which evaluates its text: digits with at most one point, exactly."""
    from sympy import Rational

    if not re.fullmatch(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+", text):
        raise ValueError(f"not a number: {text!r}")
    return Rational(text)


def refuse_code(event: str, arguments: tuple) -> None:
    """Audit hook: ends the process when anything tries to run text or to reach outside."""
    is_source_text = event == "compile" and not os.path.isabs(os.fsdecode(arguments[1] or b""))
    if is_source_text and sys._getframe(1).f_code is _monomial_code:
        return
    is_writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if is_source_text or is_writing or event.startswith(_FORBIDDEN):
        os._exit(77)


_monomial_code = None


def parse(latex: str, imaginary: bool):
    """The SymPy object of `latex`, over real variables; latex2sympy makes a variable of every i."""
    from latex2sympy2_extended import latex2sympy
    from sympy import Basic, I, Symbol

    parsed = latex2sympy(latex, is_real=True)
    if imaginary and isinstance(parsed, Basic):
        parsed = parsed.subs(Symbol("i", real=True), I)
    return parsed


def equal(gold_latex: str, answer_latex: str, imaginary: bool = False) -> bool:
    """math-verify's verdict; numbers must agree relatively too, and nothing undefined is equal to anything."""
    from math_verify import verify
    from sympy import Basic, nan, zoo

    gold, answer = parse(gold_latex, imaginary), parse(answer_latex, imaginary)
    for side in (gold, answer):
        if isinstance(side, Basic) and side.has(nan, zoo):
            return False
    if not verify(gold, answer, timeout_seconds=None):
        return False
    if all(getattr(side, "is_number", False) for side in (gold, answer)):
        gold_number, difference = complex(gold.evalf()), complex((gold.doit() - answer.doit()).evalf())
        return abs(difference) <= RELATIVE_TOLERANCE * abs(gold_number)
    return True


def limit_resources() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle; it closes our stdin


def main(cpu_limit_s: float) -> None:
    import sympy.parsing.sympy_parser
    import sympy.physics.units  # imported by simplify() otherwise; its names go through sympify

    global _monomial_code
    _monomial_code = sympy.polys.monomials.MonomialOps._build.__code__
    sympy.parsing.sympy_parser.parse_expr = parse_number
    limit_resources()
    for gold, answer in [
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        (r"\sin^2 x+\cos^2 x", "1"),
        (r"x^2-1=0", r"(x-1)(x+1)=0"),
        (r"\begin{matrix}1\\2\end{matrix}", r"\begin{matrix}1\\2\end{matrix}"),
        (r"\{1,x\}", r"\{x,1\}"),
        (r"(1,\infty)", r"[1,\infty)"),
        (r"\binom{4}{2}\pi", r"\log_2 8+|e|"),
        (r"\sqrt{3}+i x", r"|i|e^{i\pi}"),
    ]:
        equal(gold, answer, imaginary="i" in gold)  # imports everything lazy before the hook forbids compiling
    sys.addaudithook(refuse_code)
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
        try:
            verdict = equal(*json.loads(line))
        except Exception:  # whatever a symbolic library raises on text from a model: not shown to be equal
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        print(json.dumps(bool(verdict)), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
