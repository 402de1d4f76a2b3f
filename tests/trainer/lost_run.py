"""A run of split_run.py in which one process kills itself, as the kernel does for want of memory: SIGKILL.

    torchrun --nproc_per_node 2 lost_run.py FOLDER METHOD STEP RANK

In: the method of the trainer before which, after so many steps, the process of that rank dies. Out: FOLDER/lost, and
the clock at its death in FOLDER/died.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import split_run

from trainer.training.run import GRPORun


def main(folder: str, method: str, step: str, rank: str) -> int:
    original = getattr(GRPORun, method)

    def dies(self, *args, **kwargs):
        if (self.state.global_step, self.args.process_index) == (int(step), int(rank)):
            (Path(folder) / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(GRPORun, method, dies)
    return split_run.run(Path(folder), "lost")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
