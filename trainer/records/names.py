"""How benchmarks and methods are written, and in which order, in every table and figure."""

# The order in which the published tables have them; others follow in the order of their names.
_BENCHMARK_ORDER = ("gsm8k", "math500", "aime24", "aime25")
_METHOD_ORDER = ("thinking", "no_thinking", "cod", "ccot", "cer")
_TITLES = {
    "gsm8k": "GSM8K",
    "math500": "MATH500",
    "aime24": "AIME24",
    "aime25": "AIME25",
    "tiny": "Embedded problems",
    "thinking": "w/ thinking",
    "no_thinking": "w/o thinking",
    "cod": "CoD",
    "ccot": "CCoT",
    "cer": "CER",
}


def title(name: str) -> str:
    """How a benchmark or method is written in a table or figure."""
    return _TITLES.get(name, name)


def benchmarks_in_order(names: set[str]) -> list[str]:
    return in_order(names, _BENCHMARK_ORDER)


def methods_in_order(names: set[str]) -> list[str]:
    return in_order(names, _METHOD_ORDER)


def in_order(names: set[str], order: tuple[str, ...]) -> list[str]:
    """The names that `order` has, in its order, then the others in alphabetical order."""
    return [name for name in order if name in names] + sorted(names - set(order))
