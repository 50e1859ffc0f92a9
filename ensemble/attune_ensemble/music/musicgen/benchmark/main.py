"""Options of the benchmark, and what becomes of what is measured. Needs torch and transformers, and no click."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from attune_client.protocol.errors import AttuneError
from attune_ensemble.music.musicgen.benchmark.machine import copy_bandwidth, describe
from attune_ensemble.music.musicgen.benchmark.quality import Fidelity, fidelity_rows, fidelity_table
from attune_ensemble.music.musicgen.benchmark.record import Record
from attune_ensemble.music.musicgen.benchmark.report import decoder_table, draw, failure_list, in_order, part_table
from attune_ensemble.music.musicgen.benchmark.rows import Measured, Setup, baseline_groups, own_groups, part_groups
from attune_ensemble.music.musicgen.loading import SIZES, TINY, Numerics
from attune_ensemble.music.musicgen.threads import on_own_thread

__all__ = ["main"]

_SHORTEST_S = 0.1


def main(
    arguments: Sequence[str] | None = None, program: str = "python -m attune_ensemble.music.musicgen.benchmark"
) -> int:
    """Measure, or print what was measured before; returns the exit status: 1 where something could not be measured."""
    parser = _parser(program)
    options = parser.parse_args(arguments)
    _check(parser, options)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        if options.read is not None:
            return _report(Record.read(options.read), options)
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        setup = Setup(options.size, options.checkpoint, device, options.repeats, options.budget, options.baseline)
        return _check_quality(setup, options) if options.check_quality else _time(setup, options)
    except (AttuneError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description="Time MusicGen: transformers' generate, this engine step by step, and the memory's speed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--size", choices=[*SIZES, TINY], default="small", help=f"default: small; {TINY} is for rehearsals alone")
    add("--random-weights", action="store_true", help="what is measured unless --checkpoint names a folder")
    add("--checkpoint", type=_folder, metavar="DIR", help="real weights")
    add("--batch", dest="batches", type=_numbers(1), default=[1, 4], metavar="N,...", help="pieces at a time (1,4)")
    add("--seconds", dest="lengths", type=_numbers(_SHORTEST_S), default=[10.0], metavar="S,...", help="length (10)")
    add("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    add("--threads", type=_at_least_one, metavar="N", help="CPU threads")
    add("--repeats", type=_at_least_one, default=3, metavar="N", help="counted runs of each row (3)")
    add("--budget", type=_positive, default=math.inf, metavar="S", help="no further run of a row after these seconds")
    add(
        "--baseline-seconds",
        dest="baseline",
        type=_positive,
        default=math.inf,
        metavar="S",
        help="of a piece in the slow rows, transformers' and what has no graphs on a GPU: its first S seconds alone",
    )
    add("--compile", dest="compiled", action="store_true", help="with torch.compile as well")
    add("--check-quality", action="store_true", help="compare faster numerics with float32 instead of timing")
    add(
        "--record", type=Path, metavar="FILE", help="write every row there, a JSON line each, as soon as it is measured"
    )
    add("--from", dest="read", type=Path, metavar="FILE", help="measure nothing: print what --record wrote")
    add("--plot", type=Path, metavar="FILE", help="PNG file to draw")
    add("--json", dest="as_json", action="store_true", help="print one JSON line alone")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.random_weights and options.checkpoint is not None:
        parser.error("--random-weights and --checkpoint exclude each other")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use: leave --device out, or say cpu")
    if options.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed: draw elsewhere, with --from what --record wrote")


def _numbers(least: float) -> Callable[[str], list[float]]:
    """Read numbers of the kind of `least`, none below it, with commas between them."""

    def read(value: str) -> list[float]:
        try:
            numbers = [type(least)(part) for part in value.split(",")]
        except ValueError:
            numbers = []
        if not numbers or not all(least <= number < math.inf for number in numbers):
            whole = "whole " if isinstance(least, int) else ""
            raise argparse.ArgumentTypeError(f"{value!r} is no list of {whole}numbers from {least:g} on, such as 1,4")
        return numbers

    return read


def _at_least_one(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no whole number from 1 on")
    return int(value)


def _positive(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{value!r} is no number above 0")
    return number


def _folder(value: str) -> Path:
    if not Path(value).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {value!r}")
    return Path(value)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_quality(setup: Setup, options: argparse.Namespace) -> int:
    others: list[Numerics] = ["int8", "bfloat16"] if setup.device == "cpu" else ["bfloat16", "float16"]
    rows: list[Fidelity] = []
    for row in fidelity_rows(setup, others, options.lengths[0]):
        rows.append(row)
        _say(f"{row.numerics}: {row.tokens} tokens compared")
    if not options.as_json:
        print(f"{describe(setup.device)}\n\n{fidelity_table(rows)}\n")
    print(json.dumps({"rows": [asdict(row) for row in rows]}))
    return 0


def _time(setup: Setup, options: argparse.Namespace) -> int:
    bandwidth = on_own_thread(lambda: copy_bandwidth(setup.device))
    record = Record.begun(f"MusicGen {setup.size}", describe(setup.device), bandwidth, options.record)

    def measure(name: str, batch: int, seconds: float, rows: Iterable[Measured]) -> None:
        where = f"{name}, batch {batch}, {seconds:g} s"
        _measure(record, where, rows, record.add_row, lambda row: f"batch {row.batch}: {row.speed:.2f} s/s")

    # The slow rows last, after all others of every size: a run that is stopped has what it is for.
    sizes = [(batch, seconds) for seconds in options.lengths for batch in options.batches]
    for size in sizes:
        for name, rows in own_groups(setup, *size):
            measure(name, *size, rows)
    for name, parts in part_groups(setup, options.lengths[0]):
        _measure(record, name, parts, record.add_part, lambda row: f"{1000 * row.wall_s:.1f} ms")
    for size in sizes:
        for name, rows in baseline_groups(setup, *size, compiled=options.compiled):
            measure(name, *size, rows)
    return _report(record, options)


def _measure(
    record: Record,
    name: str,
    rows: Iterable[Measured],
    add: Callable[[Measured], None],
    figure: Callable[[Measured], str],
) -> None:
    """Take up rows as they come. What fails, such as for want of memory, is written down and costs no other group."""
    try:
        for row in rows:
            add(row)
            _say(f"{row.name}, {figure(row)}")
    except AttuneError:
        raise
    except Exception as error:
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        record.add_failure(f"{name}: {first_line}")
        _say(f"failed: {name}: {first_line}")


def _report(record: Record, options: argparse.Namespace) -> int:
    record.rows = in_order(record.rows)
    if not options.as_json:
        print(f"{record.machine}; copy bandwidth {record.bandwidth / 1e9:.1f} GB/s\n")
        tables = [decoder_table(record.rows, record.bandwidth), part_table(record.parts)]
        print("\n\n".join([*tables, *([failure_list(record.failures)] if record.failures else [])]) + "\n")
    if options.plot is not None:
        draw(record.rows, f"{record.title}\n{record.machine}", options.plot)
    print(json.dumps(_figures(record)))
    return 1 if record.failures else 0


def _figures(record: Record) -> dict[str, Any]:
    rows = [asdict(row) | {"speed": row.speed} for row in record.rows]
    parts = [asdict(row) for row in record.parts]
    return {"bandwidth": record.bandwidth, "rows": rows, "parts": parts, "failures": record.failures}
