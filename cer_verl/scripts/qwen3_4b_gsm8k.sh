#!/usr/bin/env bash
# Qwen3-4B: published_gsm8k.sh says what is run and what has to be there before. Further hydra overrides may follow.
exec bash "$(dirname "$0")/published_gsm8k.sh" Qwen/Qwen3-4B trainer.experiment_name=qwen3_4b_gsm8k "$@"
