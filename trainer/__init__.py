"""GRPO training with entropy-based rewards on top of TRL and `cer_ext`."""
