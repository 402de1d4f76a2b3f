"""What evaluations write, and how it is named: what evaluate, report and plots build on.

record_files.py   the JSONL files: written, read, resumed; a kill loses at most one batch
settings.py       settings and provenance of a directory; a changed one is refused
directories.py    LABEL=DIR of a command line -> directories with labels
names.py          titles and order of benchmarks and methods
"""
