"""Measuring models: predictions over a corpus, agreement with its labels, and checks that a person would try."""
