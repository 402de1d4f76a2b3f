"""CER inside verl 0.9.1, without touching a file of verl: `plugin` is loaded by verl itself.

    VERL_USE_EXTERNAL_MODULES=cer_verl.plugin python -m verl.trainer.main_ppo trainer.v1.trainer_mode=cer_sync ...

An installed package is found through its entry point as well, without the variable. See docs/verl.md.

plugin.py          what verl loads: checks its version, registers the two below
cer_trainer.py     the trainer `cer_sync`: verl's synchronous trainer with the entropy in the reward
responses.py       verl's rows -> whole responses; entropies -> TECA, sum, length; reward
settings.py        the keys under `cer`, and the configurations that are refused
entropy_history.py TECA and length of every step, for the padding alarm, through checkpoints
fused_head.py      the head of cer_ext in the place of verl's FusedLinearForPPO
grading.py         verl's reward function: 1 if the last boxed answer is right
prepare_data.py    python -m cer_verl.prepare_data: a data set of trainer.datasets -> verl's parquet file
scripts/           the published runs, as hydra overrides

It imports cer_ext and those parts of trainer that need no TRL, which does not fit beside verl in one environment.
"""
