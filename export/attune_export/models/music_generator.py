"""`music_generator`: the music engines; its part is MusicGen's checkpoint, or a note that there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

from attune_client.protocol.models import MUSIC_GENERATOR
from attune_client.protocol.profiles import EMBEDDED, GPU
from attune_ensemble.music.musicgen import checkpoint
from attune_export.digests import digests_of, digests_of_weights
from attune_export.errors import ExportError
from attune_export.parts import NO_MUSICGEN, ExportOptions, Part
from attune_export.served_model import Kind, Places, ServedModel, Settings, ahead
from attune_weights import fetch, manifest

__all__ = ["MODEL"]

MUSICGEN_DIR = checkpoint.FOLDER
_USUAL_CHECKPOINT = {EMBEDDED: NO_MUSICGEN, GPU: "musicgen-small"}


def _part(options: ExportOptions) -> Part:
    """Return MusicGen's unchanged checkpoint, by the name of pinned weights or a folder; for "none", a note instead."""
    source = options.musicgen or options.profile.choose(_USUAL_CHECKPOINT) or NO_MUSICGEN
    if source == NO_MUSICGEN:
        return Part(MUSIC_GENERATOR.name, {"musicgen": NO_MUSICGEN}, (), _note_that_there_is_none)
    weights: tuple[str, ...] = ()
    if source in manifest():
        made_from, weights = digests_of_weights(source), (source,)
    elif (Path(source) / checkpoint.CONFIG_FILE).is_file():
        made_from = digests_of(Path(source))
    else:
        known = [name for name in manifest() if name.startswith(MUSICGEN_DIR)]
        raise ExportError(
            f"{source} is neither a folder with a MusicGen checkpoint nor one of {', '.join(known)}, {NO_MUSICGEN}"
        )

    def build(folder: Path) -> None:
        shutil.copytree(fetch(source) if weights else Path(source), folder / MUSICGEN_DIR)

    return Part(MUSIC_GENERATOR.name, made_from, weights, build)


def _note_that_there_is_none(folder: Path) -> None:
    (folder / MUSICGEN_DIR).mkdir()
    (folder / MUSICGEN_DIR / NO_MUSICGEN).write_text("exported without a checkpoint: the composer plays\n")


MODEL = ServedModel(
    MUSIC_GENERATOR,
    Kind.PYTHON,
    settings={
        EMBEDDED: Settings(
            # Four slots of MusicGen, if it is exported, need up to 2.4 GB.
            parameters={"engine": "composer", "chunk_s": "1.0", "slots": "4", "queue": "8", **ahead(8 * 2**20)},
            # Those of music_therapy, which hold one each, and as many for clients of its own as there were.
            places=Places(80, 16),
        ),
        GPU: Settings(
            on_gpu=True,
            # The key-value caches of sixteen slots of MusicGen small need 5 GB.
            parameters={
                "engine": "musicgen",
                "chunk_s": "1.0",
                "numerics": "bfloat16",
                "slots": "16",
                "queue": "64",
                # Four minutes of mono: a slot is free once its piece is made, and not only once it was listened to. If
                # all 80 requests were that long and nobody read, 2.7 GB would wait in the server.
                **ahead(32 * 2**20),
            },
            # The engine limits itself, to its slots and its queue (80 requests). More are let through, so that it is
            # the engine that refuses, and no request waits in front of its queue uncounted.
            places=Places(112, 0),
        ),
    },
    weights=MUSICGEN_DIR,
    part=_part,
)
