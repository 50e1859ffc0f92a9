"""Mutated files against the decoder, each with its error within a second: `pytest tests/unit/test_bad_files.py`."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import soundfile as sf

from attune_client.protocol import errors
from attune_ensemble.chaos.files import KINDS, MutatedFile, bombs, mutated_files
from attune_ensemble.speech.audio import Decoder, decode_speech
from tests.conftest import SAMPLES
from tests.recordings import tone, with_pyav

SEED = 14
LONGEST_S = 1.0

RECORDINGS = [sf.read(path, dtype="float32")[0] for path in SAMPLES]


def processor_s() -> float:
    """Processor time of this process and of those that it has waited for, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def outcome(encoded: bytes, decoder: Decoder) -> str:
    try:
        waveform = decode_speech(encoded, decoder)
    except errors.InvalidAudio as error:
        assert_clear(str(error))
        return type(error).__name__
    assert np.isfinite(waveform).all()
    assert np.abs(waveform).max() <= 1
    return "decoded"


def assert_clear(message: str) -> None:
    """One line for who sent the file: no trace, no path, and no word of the decoder's own accidents."""
    assert "\n" not in message
    assert not any(word in message for word in ("Traceback", ".py", "/usr", "/tmp", "crashed", "ended with status"))
    assert 10 < len(message) < 300


def outcomes(files: Iterable[MutatedFile], decoder: Decoder) -> Counter[str]:
    seen, slow = Counter[str](), []
    for file in files:
        before_s = processor_s()
        seen[outcome(file.encoded, decoder)] += 1
        if (took_s := processor_s() - before_s) > LONGEST_S:
            slow.append(f"{file.name}: {took_s:.1f} s")
    assert not slow
    return seen


def test_the_same_seed_makes_the_same_files():
    made = list(mutated_files(RECORDINGS, len(KINDS), SEED))
    assert made == list(mutated_files(RECORDINGS, len(KINDS), SEED))
    other = list(mutated_files(RECORDINGS, len(KINDS), SEED + 1))
    assert not {file.encoded for file in made} & {file.encoded for file in other}
    assert [file.name.split(": ")[1] for file in made] == list(KINDS)


def test_five_hundred_mutated_files_have_a_clear_error_each(capfd):
    """Most are called unreadable; many can be heard all the same, where a bit or a tag was harmed."""
    seen = outcomes(mutated_files(RECORDINGS, 500, SEED), Decoder.SOUNDFILE)
    assert sum(seen.values()) == 500
    assert {"UnreadableAudio", "TruncatedAudio", "AudioTooLong", "NonFiniteAudio", "decoded"} <= set(seen)
    assert "Traceback" not in capfd.readouterr().err  # the server's log


def test_what_libsndfile_does_not_read_hurts_the_other_decoder_no_more():
    others = {
        "M4A": with_pyav(tone(2.0, 16_000), 16_000, "ipod", "aac"),
        "WebM": with_pyav(tone(2.0, 48_000), 48_000, "webm", "libopus"),
        "AMR": with_pyav(tone(2.0, 8_000), 8_000, "amr", "libopencore_amrnb", bit_rate=12_200),
        "MKA": with_pyav(tone(2.0, 16_000), 16_000, "matroska", "flac"),
        "TTA": with_pyav(tone(2.0, 16_000), 16_000, "tta", "tta"),
        "WavPack": with_pyav(tone(2.0, 16_000), 16_000, "wv", "wavpack"),
    }
    seen = outcomes(mutated_files(RECORDINGS, 10 * len(KINDS), SEED, others), Decoder.WITH_PYAV)
    assert {"UnreadableAudio", "TruncatedAudio", "EmptyAudio", "decoded"} <= set(seen)


def test_bombs_are_refused_before_they_expand():
    files = [MutatedFile(*made) for made in bombs()]
    assert max(len(file.encoded) for file in files) < 2**23
    seen = outcomes(files, Decoder.WITH_PYAV)
    assert seen["AudioTooLong"] >= 6


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"RIFF\0\0\0\0WAVE", bytes(8)),
        (b"FORM\0\0\0\0AIFF", bytes(8)),
        (b"RF64\0\0\0\0WAVE", bytes(8)),
        (b"caff\0\1\0\0", bytes(12)),
        (b"\0\0\0\x08ftyp", b"\0\0\0\x08free"),
    ],
)
def test_a_file_of_a_million_empty_parts_is_refused_without_counting_them(head, part):
    file = MutatedFile("parts", head + part * 2**20)
    before_s = processor_s()
    with pytest.raises(errors.UnreadableAudio, match="parts; no recording"):
        decode_speech(file.encoded)
    assert processor_s() - before_s < 0.5


@pytest.mark.parametrize(("container", "codec"), [("matroska", "flac"), ("matroska", "wavpack"), ("tta", "tta")])
def test_a_bomb_in_a_container_of_the_other_decoder_is_refused_alike(container, codec):
    long = with_pyav(np.zeros(900 * 8_000, np.float32), 8_000, container, codec)
    assert len(long) < 2**20
    assert outcomes([MutatedFile(codec, long)], Decoder.WITH_PYAV) == {"AudioTooLong": 1}
