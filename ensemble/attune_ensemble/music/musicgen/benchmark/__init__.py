"""`attune bench music`: what the decode loop costs, against transformers' generate and against the memory's speed.

    attune bench music --size small --batch 1,4 --seconds 10

`python -m attune_ensemble.music.musicgen.benchmark` is the same, where there is torch and transformers and little else.
`ensemble/benchmarks/gpu.sh` calls it on a GPU.

The slow rows, transformers' and on a GPU what runs without graphs, are measured last, of `--baseline-seconds` of a
piece alone (column `s`): a run that is stopped has the engine's rows.

Weights are random unless `--checkpoint` names a folder: speed does not depend on their values. All rows are of one run,
on one machine, one after the other.

The floor of a step is memory traffic: every weight of the decoder once, and the keys and values of every row so far.
The table says how much of the copy bandwidth, measured in the same run, each row reaches.
"""
