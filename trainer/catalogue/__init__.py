"""What can be named on a command line, one entry each. To add one, edit one file here and write a function or a prompt.

rewards.py     --reward
data_sets.py   --dataset of training, --benchmarks of evaluation
methods.py     --methods of evaluation

The command line, its help, the tables and the order in reports read these entries. No file here imports torch or
datasets, so `--help` stays quick; the designs of the embedded problems are entries of trainer/tiny/problems.py.
"""
