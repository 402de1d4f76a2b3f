"""GRPO training with entropy-based rewards on top of TRL and `cer_ext`."""

import sys

from trainer.name_clash import require_own_package

require_own_package()
if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module of `python -m trainer.NAME`
    from trainer.console.interrupt import end_at_once

    end_at_once()
