"""Recordings as people have them, whatever made them: `pytest tests/unit/test_recordings.py`."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from attune_client.protocol import errors
from attune_client.protocol.bounds import MAX_SPEECH_SAMPLES, SPEECH_RATES_HZ
from attune_ensemble.speech import audio as audio_module
from attune_ensemble.speech import av_process
from attune_ensemble.speech.audio import Decoder, MonoStream, decode_speech
from tests.conftest import ROOT
from tests.recordings import (
    TONE_HZ,
    piped,
    scrambled,
    tone,
    video_only,
    with_picture,
    with_pyav,
    with_soundfile,
    with_wav_chunk,
)

RATE = 16_000
SAMPLES = tone(2.0, RATE)
WAV = with_soundfile(SAMPLES, RATE)
M4A = with_pyav(SAMPLES, RATE, "ipod", "aac")
AMR = with_pyav(tone(2.0, 8_000), 8_000, "amr", "libopencore_amrnb", bit_rate=12_200)
WEBM = with_pyav(tone(2.0, 48_000), 48_000, "webm", "libopus")


def is_the_tone(waveform: np.ndarray, duration_s: float = 2.0) -> bool:
    peak_hz = np.abs(np.fft.rfft(waveform)).argmax() * RATE / len(waveform)
    return abs(len(waveform) / RATE - duration_s) < 0.15 and abs(peak_hz - TONE_HZ) < 2


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_24", "PCM_32", "DOUBLE", "ULAW", "ALAW")),
        *(("WAV", subtype) for subtype in ("IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32")),
        *(("AU", "ULAW"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("RF64", "PCM_16"), ("W64", "PCM_16")),
        *(("AIFF", "PCM_S8"), ("NIST", "PCM_16"), ("VOC", "PCM_16"), ("SVX", "PCM_16")),
    ],
)
def test_every_kind_that_libsndfile_writes_is_read(container, subtype):
    assert is_the_tone(decode_speech(with_soundfile(SAMPLES, RATE, container, subtype), Decoder.SOUNDFILE))


@pytest.mark.parametrize("size", [b"\0" * 8, b"\xff" * 8], ids=["size 0", "largest size"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"])
def test_a_recording_written_to_a_pipe_is_read_to_its_end(container, size):
    assert is_the_tone(decode_speech(piped(with_soundfile(SAMPLES, RATE, container), size), Decoder.SOUNDFILE))


def test_a_piped_recording_is_counted_while_it_is_decoded():
    endless = piped(with_soundfile(np.zeros(4_000 * 601, np.float32), 4_000, "FLAC"))
    with pytest.raises(errors.AudioTooLong, match="longer than the 600 s"):
        decode_speech(endless)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(with_wav_chunk(WAV, b"LIST", b"INFOISFT\x0e\0\0\0Lavf61.7.100\0\0"), id="LIST chunk"),
        pytest.param(with_wav_chunk(WAV, b"bext", bytes(603)), id="odd chunk"),
        pytest.param(with_picture(with_soundfile(SAMPLES, RATE, "MP3")), id="MP3 with a picture"),
    ],
)
def test_what_stands_before_the_samples_is_skipped(encoded):
    assert is_the_tone(decode_speech(encoded, Decoder.SOUNDFILE))


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(M4A, id="M4A"),
        pytest.param(with_pyav(tone(2.0, 44_100), 44_100, "mov", "aac", layout="stereo"), id="MOV stereo"),
        pytest.param(with_pyav(tone(2.0, 8_000), 8_000, "3gp", "libopencore_amrnb", bit_rate=12_200), id="3GP AMR"),
        pytest.param(AMR, id="AMR"),
        pytest.param(WEBM, id="WebM Opus"),
        pytest.param(with_pyav(tone(2.0, 48_000), 48_000, "matroska", "libopus", layout="5.1"), id="MKA 5.1"),
        pytest.param(with_pyav(tone(2.0, 96_000), 96_000, "matroska", "flac"), id="MKA FLAC, integers"),
        pytest.param(with_pyav(SAMPLES, RATE, "avi", "pcm_u8"), id="AVI, 8 bits"),
        pytest.param(with_pyav(SAMPLES, RATE, "adts", "aac"), id="bare AAC"),
        pytest.param(with_pyav(SAMPLES, RATE, "mp4", "aac", video=True), id="MP4 with a picture"),
    ],
)
def test_what_phones_and_browsers_record_is_read(encoded):
    with pytest.raises(errors.UnreadableAudio, match="send WAV, FLAC"):
        decode_speech(encoded, Decoder.SOUNDFILE)
    assert is_the_tone(decode_speech(encoded))


@pytest.mark.parametrize(
    ("encoded", "error", "words"),
    [
        pytest.param(M4A[: len(M4A) // 2], errors.TruncatedAudio, "header announces", id="half an M4A"),
        pytest.param(WEBM[: len(WEBM) // 2], errors.TruncatedAudio, "of the 2.0 s", id="half a WebM"),
        pytest.param(AMR[: len(AMR) // 2 + 7], errors.TruncatedAudio, "cannot be decoded", id="half an AMR"),
        pytest.param(
            piped(with_soundfile(SAMPLES, RATE, "FLAC"))[:9_000], errors.TruncatedAudio, "decoded past", id="piped FLAC"
        ),
        *(
            pytest.param(with_soundfile(SAMPLES, RATE, kind)[:20_000], errors.TruncatedAudio, "announces", id=kind)
            for kind in ("AIFF", "AU", "CAF", "RF64", "W64")
        ),
        pytest.param(video_only(), errors.EmptyAudio, "no sound", id="a film without sound"),
        pytest.param(scrambled(M4A), errors.UnreadableAudio, "protected", id="protected"),
        pytest.param(M4A[:28], errors.UnreadableAudio, "not a readable", id="a header alone"),
        pytest.param(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", errors.UnreadableAudio, "readable", id="playlist"),
        pytest.param(with_pyav(0 * SAMPLES, RATE, "ipod", "aac"), errors.SilentAudio, "silent", id="silent M4A"),
        pytest.param(
            with_pyav(tone(601, 8_000), 8_000, "matroska", "pcm_s16le"), errors.AudioTooLong, "600 s", id="long MKA"
        ),
    ],
)
def test_each_broken_recording_has_the_error_that_fits(encoded, error, words):
    with pytest.raises(error, match=words) as caught:
        decode_speech(encoded)
    assert type(caught.value) is error


def worker_is(monkeypatch, program: str) -> None:
    """Let another program be the process that decodes."""
    start = subprocess.Popen

    def popen(command, **options):
        return start([sys.executable, "-c", program], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed: SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "took more than 30 s"),
        ("raise ValueError('metadata')", "ended with status 1"),
        ("import time; time.sleep(60)", "took longer than"),
    ],
)
def test_a_decoder_that_crashes_or_hangs_fails_for_its_request_alone(monkeypatch, program, words):
    worker_is(monkeypatch, program)
    monkeypatch.setattr(av_process, "_MAX_WALL_S", 1.0 if "sleep" in program else 60.0)
    with pytest.raises(errors.UnreadableAudio, match=words):
        decode_speech(M4A)


def test_a_decoder_that_starts_slowly_is_given_all_of_a_large_file(monkeypatch):
    """As on a busy machine: what a pipe had not taken within the first fraction of a second was never sent."""
    program = "import sys, time; time.sleep(1); sys.stdout.buffer.write(bytes(4 * len(sys.stdin.buffer.read())))"
    worker_is(monkeypatch, program)
    assert len(av_process.decode_in_process(bytes(2**20))) == 2**20


def test_decoding_ends_when_its_request_is_cancelled(monkeypatch):
    worker_is(monkeypatch, "import time; time.sleep(600)")
    started_s, calls, before = time.monotonic(), [], children()

    def check():
        calls.append(1)
        if len(calls) == 2:
            raise errors.RequestCancelled("gone")

    with pytest.raises(errors.RequestCancelled):
        decode_speech(M4A, check=check)
    assert len(calls) == 2
    assert time.monotonic() - started_s < 60  # it takes a fraction of a second, and one that waits takes 600
    assert children() <= before
    with pytest.raises(errors.RequestCancelled):
        decode_speech((ROOT / "samples" / "sense_and_sensibility_0890.wav").read_bytes(), check=cancelled)


def children() -> set[str]:
    """Processes that this thread started and that are still there; the session's server may be one."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def cancelled():
    raise errors.RequestCancelled("gone")


def test_the_decoder_is_found_where_attune_is_found_by_pythonpath_alone():
    """As in the container, where nothing of it is installed."""
    packages = os.pathsep.join(str(ROOT / room) for room in ("client", "ensemble"))
    code = (
        "import sys; from attune_ensemble.speech.av_process import decode_in_process\n"
        "print(len(decode_in_process(sys.stdin.buffer.read())))"
    )
    site = sysconfig.get_paths()["purelib"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([packages, site])}
    command = [sys._base_executable, "-c", code]
    done = subprocess.run(command, input=M4A, capture_output=True, env=environment, cwd="/", timeout=60)
    assert int(done.stdout) > 0, done.stderr


LIMITS = """
import resource, sys
from attune_ensemble.speech import av_worker
real = av_worker._read_mono_16k
def probe(container):
    for what in ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_FSIZE"):
        print(what, *resource.getrlimit(getattr(resource, what)), file=sys.stderr)
    for attempt in (lambda: open("/etc/hostname"), lambda: __import__("socket").socket(), lambda: bytearray(2**31)):
        try:
            attempt()
        except (OSError, MemoryError) as error:
            print(type(error).__name__, file=sys.stderr)
    return real(container)
import socket
av_worker._read_mono_16k = probe
sys.exit(av_worker.main())
"""


def test_the_decoder_can_open_nothing_and_has_limits():
    done = subprocess.run([sys.executable, "-c", LIMITS], input=M4A, capture_output=True, check=True)
    said = done.stderr.decode().splitlines()
    memory = av_process.MAX_MEMORY + 2 * len(M4A)
    assert said[:5] == [
        f"RLIMIT_CPU {av_process.MAX_CPU_S} {av_process.MAX_CPU_S}",
        f"RLIMIT_AS {memory} {memory}",
        "RLIMIT_NOFILE 3 3",
        "RLIMIT_CORE 0 0",
        "RLIMIT_FSIZE 0 0",
    ]
    assert said[5:] == ["OSError", "OSError", "MemoryError"]
    assert is_the_tone(np.frombuffer(done.stdout, np.float32))


def test_a_missing_pyav_is_named():
    program = (
        "import sys; sys.modules['av'] = None; from attune_ensemble.speech import av_worker; sys.exit(av_worker.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], input=M4A, capture_output=True, check=False)
    assert done.returncode == av_process.REFUSED
    error = errors.from_wire(done.stdout.decode())
    assert type(error) is errors.UnreadableAudio
    assert "pip install av" in str(error)


def test_pyav_is_never_loaded_into_our_process():
    program = (
        "import sys; from attune_ensemble.speech.audio import decode_speech; "
        "decode_speech(sys.stdin.buffer.read()); sys.exit('av' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], input=M4A, check=False).returncode == 0


def test_a_sample_rate_that_no_recording_has_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(audio_module, "_read_mono_16k", lambda file: pytest.fail("decoded it"))
    lowest, highest = SPEECH_RATES_HZ
    for rate, container in ((lowest - 1, "WAV"), (highest + 1, "WAV"), (655_350, "FLAC")):
        with pytest.raises(errors.UnreadableAudio, match=f"{rate} Hz; {lowest} to {highest} Hz"):
            decode_speech(with_soundfile(tone(0.1, rate), rate, container))


@pytest.mark.parametrize("rate", SPEECH_RATES_HZ)
def test_both_ends_of_the_sample_rate_are_read(rate):
    assert is_the_tone(decode_speech(with_soundfile(tone(1.0, rate), rate)), 1.0)


def test_samples_of_all_channels_are_bounded():
    stream = MonoStream()
    block = np.broadcast_to(np.float32(0.1), (10_000, 1_024))
    for _ in range(MAX_SPEECH_SAMPLES // block.size):
        stream.add(block, 192_000)
    with pytest.raises(errors.AudioTooLong, match="115 million samples"):
        stream.add(block, 192_000)


def test_a_header_that_announces_too_many_samples_is_enough():
    wide = bytearray(with_soundfile(np.zeros((1_000, 200), np.float32), 48_000, "AU"))
    wide += bytes(2 * MAX_SPEECH_SAMPLES)
    wide[8:12] = b"\xff" * 4
    with pytest.raises(errors.AudioTooLong, match="million samples"):
        decode_speech(bytes(wide))


def test_memory_does_not_follow_the_channels(monkeypatch):
    sizes = []
    add = MonoStream.add
    monkeypatch.setattr(MonoStream, "add", lambda self, block, rate: (sizes.append(block.size), add(self, block, rate)))
    decode_speech(with_soundfile(np.repeat(tone(1.0, 48_000)[:, None], 256, axis=1), 48_000, "CAF"))
    assert max(sizes) <= 2**17


@pytest.mark.parametrize("peak", [1.5, 300.0, 32_767.0, 2.0**31])
@pytest.mark.parametrize("channels", [1, 2])
def test_float_samples_beyond_full_scale_are_scaled_to_it(peak, channels):
    loud = np.repeat(tone(1.0, RATE, peak)[:, None], channels, axis=1)
    waveform = decode_speech(with_soundfile(loud, RATE, "WAV", "FLOAT"))
    np.testing.assert_allclose(waveform, tone(1.0, RATE, 1.0), atol=1e-3)


@pytest.mark.parametrize("peak", [1e10, 1e38, 3.4e38])
@pytest.mark.parametrize("channels", [1, 2])
def test_absurd_samples_are_called_so_and_not_silent(peak, channels):
    loud = np.repeat(tone(1.0, RATE, peak)[:, None], channels, axis=1)
    with pytest.raises(errors.NonFiniteAudio, match="full scale"):
        decode_speech(with_soundfile(loud, RATE, "WAV", "FLOAT"))


def test_doubles_that_no_float_holds_are_not_finite():
    loud = np.where(np.arange(RATE) == 9, 1e300, tone(1.0, RATE).astype(np.float64))
    with pytest.raises(errors.NonFiniteAudio):
        decode_speech(with_soundfile(loud, RATE, "WAV", "DOUBLE"))


def test_one_loud_click_is_named_where_it_drowns_the_rest():
    clicked = tone(1.0, RATE)
    clicked[5_000] = 1e7
    with pytest.raises(errors.SilentAudio, match=r"reach .*e\+0\d, where full scale is 1"):
        decode_speech(with_soundfile(clicked, RATE, "WAV", "FLOAT"))


@pytest.mark.parametrize(
    ("riff", "data"),
    [(0x7FFFF024, 0x7FFFF000), (0x80000024, 0x80000000), (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFF024, 0xFFFFF000), (0, 0)],
    ids=["sox", "arecord", "ffmpeg", "4 GB", "none"],
)
def test_placeholder_sizes_of_streamed_files_are_recognised(riff, data):
    encoded = bytearray(with_soundfile(SAMPLES, RATE))
    place = encoded.find(b"data") + 4
    encoded[4:8], encoded[place : place + 4] = struct.pack("<I", riff), struct.pack("<I", data)
    assert is_the_tone(decode_speech(bytes(encoded)))


def test_an_aiff_that_sox_wrote_to_a_pipe_is_read():
    encoded = bytearray(with_soundfile(SAMPLES, RATE, "AIFF"))
    for place, size in ((4, 0x7F000050), (encoded.find(b"SSND") + 4, 0x7F000008)):
        encoded[place : place + 4] = struct.pack(">I", size)
    frames = encoded.find(b"COMM") + 10
    encoded[frames : frames + 4] = struct.pack(">I", 0x3F800000)
    assert is_the_tone(decode_speech(bytes(encoded)))
