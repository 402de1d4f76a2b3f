"""Files that are whole or absent, and hashes that tell whether they are the same. Imports nothing else of trainer.

atomic.py        files and directories that appear by one rename, when everything in them has reached the disk
cache.py         the cache directory
fingerprint.py   hashes of files and of a model's weights
"""
