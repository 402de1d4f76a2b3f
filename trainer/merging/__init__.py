"""What `python -m trainer.merge_lora` is made of: the adapter's files, the merge, its verification."""
