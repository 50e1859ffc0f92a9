"""Data, the regressors, LoRA, the emotion map, and their training."""
