"""Names of models on a command line, and the directories of their weights. Imports trainer/storage alone.

names.py   `smollm2`, a .gguf file, a directory or a hub id -> what transformers loads
gguf.py    a GGUF file -> a directory of safetensors, converted once and cached
"""
