"""Corpora behind one interface, and batches of them."""
