"""GRPO training with entropy-based rewards on top of TRL and `cer_ext`."""

from trainer.name_clash import require_own_package

require_own_package()
