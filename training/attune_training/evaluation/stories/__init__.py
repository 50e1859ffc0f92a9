"""First-person stories with an emotion each, and what the choice among the 40 emotions makes of them.

The texts were written for this project, before the weights that they measure, and are not for training.
"""
