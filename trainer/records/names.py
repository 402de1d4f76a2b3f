"""How benchmarks and methods are written, and in which order, in every table and figure: those of trainer/catalogue."""

from collections.abc import Iterable

from trainer.catalogue.data_sets import DATA_SETS, EMBEDDED, EMBEDDED_TITLE, MADE
from trainer.catalogue.methods import METHODS, PUBLISHED_TITLES


def title(name: str) -> str:
    """How a benchmark or method is written in a table or figure; a name that is not known, as it is."""
    if name in DATA_SETS:
        return DATA_SETS[name].title
    if name in METHODS:
        return METHODS[name].title
    return {EMBEDDED: EMBEDDED_TITLE, **MADE, **PUBLISHED_TITLES}.get(name, name)


def benchmarks_in_order(names: set[str]) -> list[str]:
    return _in_order(names, [*DATA_SETS, *MADE])


def methods_in_order(names: set[str]) -> list[str]:
    return _in_order(names, [*METHODS, *PUBLISHED_TITLES])


def _in_order(names: set[str], order: Iterable[str]) -> list[str]:
    """The names that `order` has, in its order, then the others in alphabetical order."""
    known = [name for name in order if name in names]
    return known + sorted(names - set(known))
