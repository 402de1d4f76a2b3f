"""What `python -m trainer.plots` is made of: the numbers behind the figures, the figures, the token page."""
