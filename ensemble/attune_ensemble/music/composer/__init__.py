"""The composer: writes a piece for a specification and plays it with sampled instruments, on one CPU core.

From the specification to sound, one module a step: `composition` writes phrases (`score` is what they are made of,
`harmony`, `melody` and `orchestration` are its crafts), `performance` turns notes into timed strokes, `renderer` sums
samples (`samples`) on the buses, `mastering` adds the room and brings it to level. `engine` puts them together.
"""
