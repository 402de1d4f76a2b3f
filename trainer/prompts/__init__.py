"""How a question is put to a model: prompts as data, the same for training and evaluation.

prompt.py   Prompt: system turn, worked examples as chat turns, instruction; files and runs it is read from
*.yaml      prompts that come with the package
"""
