"""`speech_to_text`: Whisper in faster-whisper, with its pinned weights."""

from __future__ import annotations

from attune_client.protocol.models import SPEECH_TO_TEXT
from attune_client.protocol.profiles import EMBEDDED, GPU, WHISPER_DIR
from attune_export.parts import WHISPER, ExportOptions, Part, copied_weights
from attune_export.served_model import Kind, Places, ServedModel, Settings
from attune_weights import manifest

__all__ = ["MODEL"]

# "soundfile" never starts PyAV, and cannot read M4A, AMR and WebM.
_DECODER = {"decoder": "soundfile+pyav"}


def _part(options: ExportOptions) -> Part:
    places = {name: f"{WHISPER_DIR}/{name}" for name in manifest()[WHISPER].files}
    return copied_weights(SPEECH_TO_TEXT, WHISPER, places)


MODEL = ServedModel(
    SPEECH_TO_TEXT,
    Kind.PYTHON,
    # One transcriber; as many requests may wait as the calling models process concurrently.
    settings={
        EMBEDDED: Settings(
            parameters={"compute_type": "int8", "beam_size": "1", "threads": "2", **_DECODER},
            places=Places(1, 67),
        ),
        GPU: Settings(
            on_gpu=True,
            parameters={"compute_type": "float16", "beam_size": "5", "threads": "4", **_DECODER},
            places=Places(1, 111),
        ),
    },
    weights=WHISPER_DIR,
    part=_part,
)
