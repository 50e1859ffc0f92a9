"""The composer: composes a piece for a specification and renders it with sampled instruments, on one CPU core.

From the specification to audio, one module a step: `composition` writes phrases (in the data types of `score`, with
`harmony`, `melody`, `orchestration` and `parts`), `performance` converts notes to timed strokes, `renderer` sums
samples (`samples`) on the buses, `room` adds reverberation, `mastering` controls gain and peaks. `engine` combines
them.
"""
