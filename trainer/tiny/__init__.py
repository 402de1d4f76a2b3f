"""The embedded experiment: everything that `python -m trainer.grpo` needs when it is given nothing.

problems.py       two-step word problems, and responses that explore more than they must (three designs)
tokenizer.py      one token per word, or one per byte
model.py          a 0.1M-parameter Qwen3
warm_start.py     supervised training by imitation, cached
sampler.py        sampling with a key/value cache that drops finished rows; TRL's rollout_func
evaluate.py       held-out problems: accuracy, length, TECA, explorations
experiment.py     warm start, GRPO once per reward, table, curves
result_table.py   the table, with Wilson intervals and what may be read from it
curves.py         training curves
"""
