"""The regressors: their layers and towers, losses, checkpoints, and building one from its configuration."""
