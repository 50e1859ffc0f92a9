"""MusicGen's step on a GPU in few kernels, written in Triton's language (the compiler, not the server)."""
