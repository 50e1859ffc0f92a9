"""MusicGen served: its own decode loop, requests joining and leaving a running batch, audio streamed as it is made.

The room of `attune_ensemble` that needs torch and transformers; it is imported only where this engine is chosen.
"""
