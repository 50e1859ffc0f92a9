"""Corpora with one interface, and their batches."""
