"""Whether the package `trainer` that Python imports is this project's, whole and alone.

In: the directory this file lies in, and the metadata of the distributions installed beside it. Out: nothing, or an
ImportError that says which other distribution has a package `trainer`, and what to do.

The Python Package Index has a distribution called `trainer` that has nothing to do with this project. Both install into
one directory: the later overwrites files of the earlier (`__init__.py` at least), and uninstalling one takes files of
the other away. A clone that is run from its own directory is not affected: there Python finds the clone first.

Standard library only, and no import of `trainer`: cer_commands.py runs this file by its path, because an overwritten
`__init__.py` may fail before anything of ours is reached.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

DISTRIBUTION = "cer-ext"


def other_owners(package: Path) -> list[str]:
    """Distributions other than ours, as "NAME VERSION", that installed files into the directory `package`."""
    found = set()
    for distribution in importlib.metadata.distributions(path=[str(package.parent)]):
        top_level = distribution.read_text("top_level.txt")
        if top_level is not None:
            owns = package.name in top_level.split()
        else:  # many build tools write no top_level.txt
            owns = re.search(rf"^{package.name}/", distribution.read_text("RECORD") or "", re.MULTILINE) is not None
        name = distribution.metadata["Name"] if owns else None
        if name and re.sub(r"[-_.]+", "-", name).lower() != DISTRIBUTION:
            found.add(f"{name} {distribution.version}")
    return sorted(found)


def require_own_package(package: Path | None = None) -> None:
    """Raise ImportError where files of another distribution lie in `package`, or files of ours are gone.

    Args:
        package: the directory to look at; default: the one this file lies in.
    """
    package = package or Path(__file__).resolve().parent
    mend = "pip uninstall -y {} cer_ext, then install cer_ext again"
    if others := other_owners(package):
        names = " ".join(other.split()[0] for other in others)
        raise ImportError(
            f"two distributions have installed a package `trainer` into {package}: cer_ext and {', '.join(others)}. "
            f"The later has overwritten files of the earlier, so neither can be relied on. To use cer_ext: "
            f"{mend.format(names)}. To use both, give each an environment of its own."
        )
    if not (package / "__init__.py").is_file():
        raise ImportError(
            f"{package / '__init__.py'} is missing: another distribution with a package `trainer` was probably "
            f"uninstalled, and took this file with it. To mend it: {mend.format('trainer')}."
        )
