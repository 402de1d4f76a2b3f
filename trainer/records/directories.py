"""Directories of records as a command line names them.

In: `LABEL=DIR` or `DIR`. Out: (label, directory), every label once.
"""

from pathlib import Path


def labelled_directories(arguments: list[str]) -> list[tuple[str, Path]]:
    """`LABEL=DIR` or `DIR`, whose label is the shortest tail of its path that no other directory shares."""
    named: list[tuple[str | None, Path]] = []
    for argument in arguments:
        label, equals, path = argument.partition("=")
        if equals and not Path(argument).exists():
            named.append((label, Path(path)))
        else:
            named.append((None, Path(argument)))
    tails = [path.resolve().parts for _, path in named]
    labels = []
    for index, (label, _) in enumerate(named):
        depth = 1
        while label is None:
            tail = tails[index][-depth:]
            shared = any(other[-depth:] == tail for i, other in enumerate(tails) if i != index)
            if not shared or depth >= len(tails[index]):
                label = "/".join(tail)
            depth += 1
        labels.append(label)
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"two of the directories are called {twice!r}; name them apart as LABEL=DIR")
    return [(label, path) for label, (_, path) in zip(labels, named, strict=True)]
