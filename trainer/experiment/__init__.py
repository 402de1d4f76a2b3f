"""The embedded experiment: what `python -m trainer.grpo` does when it is given nothing. Its policy is trainer/tiny's.

run.py            warm start, GRPO once per reward, table, curves
warm_start.py     supervised training by imitation, cached
held_out.py       held-out problems: accuracy, length, TECA, explorations
result_table.py   the table, with Wilson intervals and what may be read from it
"""
