"""Recordings as phones, browsers and command lines make them, for the tests.

PyAV writes what libsndfile cannot. It bundles codecs under the GPL: tests use it as a tool, nothing imports it that is
served.
"""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import soundfile as sf

TONE_HZ = 440.0


def tone(duration_s: float, rate: int, amplitude: float = 0.3) -> np.ndarray:
    """A sine [T] float32."""
    time_s = np.arange(round(duration_s * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * TONE_HZ * time_s)).astype(np.float32)


def with_soundfile(samples: np.ndarray, rate: int, container: str = "WAV", subtype: str | None = None) -> bytes:
    """Encode [T] or [T, C] with libsndfile."""
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def with_pyav(
    samples: np.ndarray,
    rate: int,
    container: str,
    codec: str,
    *,
    layout: str = "mono",
    bit_rate: int | None = None,
    video: bool = False,
) -> bytes:
    """Encode [T] with PyAV, the same in every channel, with a moving picture beside it if asked."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        picture = _add_picture(output) if video else None
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        planes = np.repeat(samples[None], av.AudioLayout(layout).nb_channels, axis=0).copy()
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        stream.open()
        resampler = av.AudioResampler(stream.format, layout, rate, stream.codec_context.frame_size or None)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
        if picture is not None:
            _draw(output, picture)
    return buffer.getvalue()


def video_only() -> bytes:
    """An MP4 file without an audio stream."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        _draw(output, _add_picture(output))
    return buffer.getvalue()


def _add_picture(output: av.container.OutputContainer) -> av.VideoStream:
    picture = output.add_stream("mpeg4", rate=5)
    picture.width = picture.height = 32
    picture.pix_fmt = "yuv420p"
    return picture


def _draw(output: av.container.OutputContainer, picture: av.VideoStream) -> None:
    for number in range(5):
        frame = av.VideoFrame.from_ndarray(np.full((48, 32), 128, np.uint8), format="yuv420p")
        frame.pts = number
        output.mux(picture.encode(frame))
    output.mux(picture.encode(None))


def piped(encoded: bytes, size: bytes = b"\xff" * 8) -> bytes:
    """What the same file looks like when its writer could not go back: WAV, RF64, AU, AIFF, W64, CAF and FLAC."""
    made, kind = bytearray(encoded), encoded[:4]
    if kind in (b"RIFF", b"FORM"):
        data = made.find(b"data" if kind == b"RIFF" else b"SSND")
        made[4:8] = made[data + 4 : data + 8] = size[:4]
    elif kind == b"RF64":
        sizes = made.find(b"ds64") + 8
        made[sizes : sizes + 24] = size * 3
    elif kind == b".snd":
        made[8:12] = size[:4]
    elif kind == b"riff":
        data = made.find(b"data")
        made[16:24] = made[data + 16 : data + 24] = size
    elif kind == b"caff":
        data = made.find(b"data")
        made[data + 4 : data + 12] = size
    elif kind == b"fLaC":
        made[21] &= 0xF0  # the upper four of 36 bits that count the samples
        made[22:26] = bytes(4)
    else:
        raise ValueError(f"{kind!r} is not written to pipes here")
    return bytes(made)


def with_wav_chunk(wav: bytes, name: bytes, body: bytes) -> bytes:
    """A WAV file with one more chunk before its samples."""
    chunk = name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    data = wav.find(b"data")
    return wav[:4] + struct.pack("<I", len(wav) - 8 + len(chunk)) + wav[8:data] + chunk + wav[data:]


def with_picture(mp3: bytes) -> bytes:
    """An MP3 file with an ID3v2 tag that holds a picture of 20 kB before its sound."""
    body = b"\0image/png\0\x03\0" + b"\x89PNG" + bytes(20_000)
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    length = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + length + frame + mp3


def scrambled(m4a: bytes) -> bytes:
    """An M4A file as a shop protects it: another name for the codec, and samples that nobody can decode."""
    start = m4a.find(b"mdat") + 4
    size = struct.unpack(">I", m4a[start - 8 : start - 4])[0] - 8
    noise = np.random.default_rng(0).bytes(size)
    return (m4a[:start] + noise + m4a[start + size :]).replace(b"mp4a", b"drms")
