"""What programs show while they run, on a terminal, in a file, or to nobody.

closed_pipe.py       a program goes on when the reader of its output is gone
interrupt.py         Ctrl-C while a program imports: a line, no traceback
output_directory.py  where a command may write, found out first
progress_bar.py      a bar on a terminal, lines in a file
"""

from trainer.name_clash import require_own_package

require_own_package()  # asked in trainer/__init__.py too, which another distribution may have overwritten
