#!/bin/sh
# Everything of MusicGen that only a GPU can show: parity under CUDA graphs, then tables.
#
#   ensemble/benchmarks/gpu.sh [STAGE...]
#
# Stages: parity, and for each SIZE (small, medium, large) SIZE, SIZE-many, SIZE-fidelity and SIZE-compile. Without any:
# those of small and medium, most important first. Within a stage the engine's rows come first and transformers' last, of
# a second of music alone: without graphs a step waits for the processor (15 to 80 ms for small, as it was seen).
# Settings: OUT=out/gpu, the folder to write; LIMIT_S=570, after which a stage is stopped; BASELINE_S=1, seconds of music
# in a slow row; PYTHON=python.
# Rehearsal where there is no GPU: DEVICE=cpu ensemble/benchmarks/gpu.sh parity tiny tiny-many tiny-fidelity
#
# It needs a clone, torch, transformers, pytest and hypothesis; nothing of Attune has to be installed. Every row is in
# OUT as soon as it is measured (STAGE.jsonl), a stage that fails costs no other one, and the status says whether any did.
set -u
cd "$(dirname "$0")/../.." || exit
OUT=${OUT:-out/gpu} LIMIT_S=${LIMIT_S:-570} BASELINE_S=${BASELINE_S:-1} PYTHON=${PYTHON:-python} DEVICE=${DEVICE:-cuda}
PYTHONPATH=client:ensemble${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
mkdir -p "$OUT" || exit
failed=

# limited STAGE COMMAND...: its output into STAGE.txt, and what it says meanwhile into STAGE.log.
limited() {
    stage=$1; shift
    echo "== $stage: $*"
    timeout --kill-after=10 "$LIMIT_S" "$@" >"$OUT/$stage.txt" 2>"$OUT/$stage.log"
    status=$?
    if [ "$status" -ne 0 ]; then
        failed="$failed $stage"
        echo "== $stage ended with status $status (124: stopped after $LIMIT_S s); the end of $OUT/$stage.log:"
        tail -n 15 "$OUT/$stage.log"
    fi
}

# What there is of the tables, where the measurement did not come to its end.
measured() {
    stage=$1; shift
    limited "$stage" "$PYTHON" -m attune_ensemble.music.musicgen.benchmark --device "$DEVICE" --budget 5 \
        --baseline-seconds "$BASELINE_S" --record "$OUT/$stage.jsonl" "$@"
    if [ ! -s "$OUT/$stage.txt" ] && [ -s "$OUT/$stage.jsonl" ]; then
        "$PYTHON" -m attune_ensemble.music.musicgen.benchmark --from "$OUT/$stage.jsonl" >"$OUT/$stage.txt"
    fi
    grep -v '^{' "$OUT/$stage.txt"
}

run() {
    size=${1%%-*}
    case $1 in
    parity)
        # No plugin of pytest's that a bare environment lacks, and no conftest, which wants the client's libraries.
        limited parity "$PYTHON" -m pytest --noconftest -p no:cacheprovider -W ignore -o addopts= -q \
            tests/unit/test_musicgen_device.py tests/unit/test_musicgen_stepping.py tests/unit/test_musicgen_engine.py \
            tests/unit/test_musicgen_fused.py
        tail -n 30 "$OUT/parity.txt"
        ;;
    tiny) measured "$1" --size tiny --batch 1,2 --seconds 1 --repeats 2 ;;
    tiny-many) measured "$1" --size tiny --batch 4 --seconds 1 --repeats 1 ;;
    small | medium | large) measured "$1" --size "$size" --batch 1,32,8 --seconds 10 --repeats 2 ;;
    # As many as a card of 80 GB holds with half a minute each.
    small-many) measured "$1" --size "$size" --batch 64 --seconds 30 --repeats 1 ;;
    medium-many | large-many) measured "$1" --size "$size" --batch 24 --seconds 30 --repeats 1 ;;
    *-compile) measured "$1" --size "$size" --batch 8 --seconds 10 --repeats 1 --compile ;;
    *-fidelity)
        limited "$1" "$PYTHON" -m attune_ensemble.music.musicgen.benchmark --device "$DEVICE" --size "$size" \
            --check-quality --seconds 2
        grep -v '^{' "$OUT/$1.txt"
        ;;
    *) echo "there is no stage $1" >&2; failed="$failed $1" ;;
    esac
}

if [ $# -eq 0 ]; then
    set -- parity small medium small-many medium-many small-fidelity medium-fidelity small-compile medium-compile
fi
for name in "$@"; do run "$name"; done
if [ -n "$failed" ]; then echo "== failed:$failed"; exit 1; fi
echo "== all done; the results are in $OUT"
