"""Drawing completions from a policy.

decode.py    prefill and decoding with a key/value cache that drops finished rows; how a token is drawn is the caller's
rollout.py   plain temperature sampling for training, as TRL's rollout_func
"""
