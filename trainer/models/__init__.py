"""What a command calls a model, and where its weights then lie. One floor above trainer/storage.

names.py   `smollm2`, a .gguf file, a directory or a hub id -> what transformers loads
gguf.py    a GGUF file -> a directory of safetensors, made once and found again
"""
