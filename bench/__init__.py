"""Benchmarks of cer_ext beside its peers: `pytest bench --benchmark-json=FILE`, then `python -m bench.table FILE`."""
