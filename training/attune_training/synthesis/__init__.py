"""Texts read aloud by programs that users install: a corpus's sentences, to train on, and stories, to measure by."""
