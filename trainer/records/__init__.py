"""What evaluations write, and how it is named: the ground floor under evaluate, report and plots.

record_files.py   the JSONL files: written so that a kill loses at most what was under way, read, resumed
settings.py       settings and provenance of a directory; a changed one is refused
directories.py    LABEL=DIR of a command line -> directories with labels
names.py          titles and order of benchmarks and methods
"""
