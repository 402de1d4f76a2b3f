"""Proof and measurement on a GPU: `python -m bench.gpu.prove` does all of it and writes JSON."""
