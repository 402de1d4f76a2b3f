"""Problems in plain English at the level of a small language model, made on the spot: sums, differences, products, stories.

problems.py   families, templates, what is held out
"""
