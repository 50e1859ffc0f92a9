"""Fitting the choice of an emotion by VAD and by the words' own meaning, on texts of the 40 emotions."""
