"""Evaluation: predictions over a corpus, agreement with its labels, and pairwise order checks."""
