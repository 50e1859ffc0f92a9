"""Training a model: settings, data, the Lightning module, and the run folder."""
