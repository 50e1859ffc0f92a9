"""The files that the rows run: both regressors for PyTorch, their graphs whole and cut, and the cut ones in 8 bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path

from attune_client.protocol.models import SPEECH_INPUTS
from attune_export.bench_encoders.towers import Tower, load_models, save_models
from attune_export.bench_encoders.ways import CUT, EAGER, WHOLE, Graphs, Row
from attune_export.digests import Digests, digests_of_code, digests_of_exporter
from attune_export.int8 import WAYS, quantise
from attune_export.onnx_export import Sizes, export_model
from attune_export.regressor import REGRESSORS, split
from attune_training.models.cut import Cut, Head
from attune_training.models.regressor import merge_adapters
from attune_weights.files import write_json

__all__ = ["needed", "prepare", "read_cut"]

_CUT_FILE = "cut.json"
_RECORD = "made_from.json"
_CHECKED = (Sizes(1, 16_000, 8), Sizes(2, 40_001, 17))
_TOLERANCE = 1e-3
"""Of random regressors, whose calibration enlarges what differs, and so what is rounded otherwise."""

_CODE = ("attune_export.bench_encoders.towers", "attune_export.comparison", "attune_export.cut", "attune_export.int8")


def needed(row: Row) -> set[Graphs]:
    """Return what a row runs, and what that is made of."""
    if row.graphs in (EAGER, CUT) and not row.shared:
        return {EAGER}
    return {EAGER, row.graphs, CUT} if row.shared else {EAGER, row.graphs}


def prepare(tower: Tower, wanted: Collection[Graphs], folder: Path) -> None:
    """Make what is wanted in `folder`, and keep what is there of the same regressors.

    Raises:
        ExportError: a graph could not be exported.
        ValueError: the folder holds something else.
        WeightsError: the towers' weights cannot be fetched.
    """
    _clear_unless_current(folder, _made_from(tower))
    makers: dict[Graphs, Callable[[Path], None]] = {
        EAGER: lambda place: save_models(tower.build(), place),
        WHOLE: lambda place: _export_whole(folder / EAGER, place),
        CUT: lambda place: _export_cut(folder / EAGER, place),
    }
    for way in WAYS:
        makers[f"int8-{way}"] = lambda place, way=way: _quantise_all(folder / CUT, place, way)  # type: ignore[index,misc]
    for name, make in makers.items():
        place = folder / name
        if name in wanted and not place.is_dir():
            partial = place.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(place)


def _made_from(tower: Tower) -> Digests:
    return digests_of_exporter() | digests_of_code(*_CODE) | tower.made_from()


def _clear_unless_current(folder: Path, made_from: Digests) -> None:
    """Empty the folder if what is in it was made from something else; a new one gets its record first.

    Raises:
        ValueError: it is not empty, and this benchmark did not make it.
    """
    record = folder / _RECORD
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8")) == made_from:
            return
        shutil.rmtree(folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else: name a folder that is empty, or one of an earlier run")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, made_from)


def _export_whole(models: Path, target: Path) -> None:
    for spec, model in zip(REGRESSORS, load_models(models), strict=True):
        whole = replace(spec, inputs=SPEECH_INPUTS)
        export_model(merge_adapters(model), whole, target / f"{spec.name}.onnx", sizes=_CHECKED, tolerance=_TOLERANCE)


def _export_cut(models: Path, target: Path) -> None:
    found = split([merge_adapters(model) for model in load_models(models)])
    for name, module in found.modules.items():
        file = target / f"{name}.onnx"
        export_model(module, found.specs[name], file, sizes=_CHECKED, tolerance=_TOLERANCE, draw=found.drawer(name))
    [cut] = {module.cut for module in found.modules.values() if isinstance(module, Head)}
    write_json(target / _CUT_FILE, asdict(cut))


def _quantise_all(graphs: Path, target: Path, way: str) -> None:
    for graph in sorted(graphs.glob("*.onnx")):
        quantise(graph, target / graph.name, way)  # type: ignore[arg-type]


def read_cut(folder: Path) -> Cut:
    """Return where the regressors were cut, of a folder that `prepare` made."""
    return Cut(**json.loads((folder / CUT / _CUT_FILE).read_text(encoding="utf-8")))
