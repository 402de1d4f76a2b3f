"""The embedded policy and its problems.

problems.py    two-step word problems, and responses that explore more than they must (designs)
tokenizer.py   one token per word, or one per byte
model.py       a 0.1M-parameter Qwen3
"""
