#!/bin/sh
# Everything of MusicGen that only a GPU can show, in one call: parity under CUDA graphs, then tables and plots.
#
#   ensemble/benchmarks/gpu.sh [OUTPUT_DIR]
#
# In an environment with the extras train and dev and torch for CUDA. About twenty minutes on an H100.
set -eu
out=${1:-out/gpu}
mkdir -p "$out"
python -m pytest -q -p no:cacheprovider tests/unit/test_musicgen_engine.py | tee "$out/parity.txt"
for size in small medium; do
    attune bench music --size "$size" --device cuda --check-quality --seconds 10 | tee "$out/$size-fidelity.txt"
    attune bench music --size "$size" --device cuda --batch 1,8,32 --seconds 10 --compile --repeats 3 \
        --plot "$out/$size.png" | tee "$out/$size.txt"
    attune bench music --size "$size" --device cuda --batch 64 --seconds 30 --repeats 1 | tee "$out/$size-64.txt"
done
