"""Problems in plain English for small language models, made on the spot: sums, differences, products, stories.

problems.py   families, templates, what is held out
"""
