"""From a recording to its spoken segments, their words, and the tokens of these words."""
