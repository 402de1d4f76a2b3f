"""What `python -m trainer.grpo` does between its command line and its last checkpoint.

arguments.py         command line and recipe -> settings, checked before anything is loaded
recipe_file.py       a recipe's YAML -> values as the command line would give them
option_checks.py     values out of range, options that do not go together, packages that are not there
config_error.py      the error of a wrong command line
secrets.py           tokens and passwords are never printed, logged or saved
start.py             where a run starts, and that it can
run_directory.py     an output directory belongs to one process at a time, and to one run
launch.py            how many processes there are, and what wraps the model: as asked for
resume_settings.py   which settings a resumed run may change
step_split.py        another split of the same step over processes and passes
run_prompt.py        how the run puts its questions
policy.py            the model and tokenizer that a run starts from
run.py               one run: trainer, training, saving
run_log.py           console table, JSONL, TensorBoard, samples
padding_alarm.py     "TECA falls while length rises"
step_state.py        what the next step depends on, beyond what transformers saves
checkpoints.py       checkpoints that are whole, and resume to the same numbers
lost_process.py      who is gone, where a connection broke
survival.py          Ctrl-C, a lost terminal, NaN, out of memory, full disk
"""
