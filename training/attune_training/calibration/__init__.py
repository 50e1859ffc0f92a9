"""A monotone map for each dimension, fitted on validation data, that becomes part of a saved model."""
