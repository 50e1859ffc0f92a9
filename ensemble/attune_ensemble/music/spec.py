"""The musical specification that every engine receives. The protocol declares it, so that clients check it too."""

from attune_client.protocol.music_spec import (
    DYNAMICS,
    INSTRUMENTS,
    MAX_TEMPO_BPM,
    MIN_TEMPO_BPM,
    MODES,
    TONICS,
    MusicSpec,
)

__all__ = ["DYNAMICS", "INSTRUMENTS", "MAX_TEMPO_BPM", "MIN_TEMPO_BPM", "MODES", "TONICS", "MusicSpec"]
