"""What `python -m trainer.report` is made of: runs, statistics, tables, and the published numbers to compare with."""
