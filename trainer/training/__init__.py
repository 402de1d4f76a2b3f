"""What `python -m trainer.grpo` does between its command line and its last checkpoint.

arguments.py       command line and recipe -> settings, checked before anything is loaded
policy.py          the model and tokenizer that a run starts from
run.py             one run: trainer, training, saving
run_log.py         console table, JSONL, TensorBoard, samples
padding_alarm.py   "TECA falls while length rises"
step_state.py      what the next step depends on, beyond what transformers saves
checkpoints.py     checkpoints that are whole, and resume to the same numbers
survival.py        Ctrl-C, NaN, out of memory, full disk
"""
