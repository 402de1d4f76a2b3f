"""Experiments: a policy before and after training, by CER and by the rewards that it must be compared with.

The embedded one, which `python -m trainer.grpo` runs when it is given nothing; its policy is trainer/tiny's:

run.py                  warm start, GRPO once per reward, table, curves
warm_start.py           supervised training by imitation, cached
held_out.py             held-out problems: accuracy, length, TECA, explorations
agreement.py            whether a policy stops where two of its calculations agree
result_table.py         the table, with Wilson intervals and what may be read from it

`python -m trainer.experiment`, for the policy and data of any recipe with held-out problems:

__main__.py             the command
stages.py               the commands that it is made of, each resumable
policies_compared.py    records -> numbers and table
where_entropy_sits.py   tokens and nats before and after the right number first stands
reading_page.py         three responses before and after, to be read
"""
