"""Sound files as nobody should send them, made from recordings: the same files for the same seed.

    for file in mutated_files(recordings, count=500, seed=1):
        answer = analyse(file.encoded)

Each is a WAV, FLAC, MP3, OGG or AIFF file that was cut, flipped, shuffled or mixed with another one; whose header
claims what no recording is; that expands to hours; or that holds a file within a file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile as sf

__all__ = ["KINDS", "MutatedFile", "bombs", "mutated_files"]

Waveform = npt.NDArray[np.float32]  # [T] mono
Generator = np.random.Generator

_RATE = 16_000
_EXCERPT_S = 2.0
_HEADER_BYTES = 64
_PIECE = 2**16
_CONTAINERS: tuple[tuple[str, str], ...] = (
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("AIFF", "PCM_16"),
)
"""What is mutated: container and encoding, by libsndfile's names."""


@dataclass(frozen=True, slots=True)
class MutatedFile:
    """One file: `name` says its number, what it was and what was done to it."""

    name: str
    encoded: bytes


def mutated_files(
    recordings: Sequence[Waveform], count: int, seed: int, others: Mapping[str, bytes] | None = None
) -> Iterator[MutatedFile]:
    """Make files of excerpts of recordings [T] at 16 kHz; each file depends on the seed and on its number alone.

    `others` are whole files of further kinds, by name, which take their turn in being damaged.
    """
    for number in range(count):
        chance = np.random.default_rng([seed, number])
        kind = tuple(KINDS)[number % len(KINDS)]
        whole = _Whole(recordings, others or {}, chance)
        name, encoded = KINDS[kind](whole, chance)
        yield MutatedFile(f"{number}: {kind}: {name}", encoded)


class _Whole:
    """Encodes an excerpt of one of the recordings."""

    def __init__(self, recordings: Sequence[Waveform], others: Mapping[str, bytes], chance: Generator) -> None:
        recording = recordings[int(chance.integers(len(recordings)))]
        start = int(chance.integers(max(1, len(recording) - round(_EXCERPT_S * _RATE))))
        self.samples = recording[start : start + round(_EXCERPT_S * _RATE)]
        self._others = others
        self._chance = chance

    def any(self) -> tuple[str, bytes]:
        """A kind of file by chance: its name, and the file."""
        kinds = (*_CONTAINERS, *self._others)
        kind = kinds[self._chance.integers(len(kinds))]
        if isinstance(kind, str):
            return kind, self._others[kind]
        return " ".join(kind), self.of(*kind)

    def of(self, container: str, encoding: str) -> bytes:
        """The excerpt in that container."""
        return _encode(self.samples, _RATE, container, encoding)


def _encode(samples: npt.NDArray[np.float32], rate: int, container: str, encoding: str) -> bytes:
    """Encode [T] or [T, C]; in pieces, because libsndfile crashes when it is handed a long OGG at once."""
    buffer = io.BytesIO()
    channels = samples.shape[1] if samples.ndim == 2 else 1
    with sf.SoundFile(buffer, "w", rate, channels, encoding, format=container) as file:
        for start in range(0, len(samples), _PIECE):
            file.write(samples[start : start + _PIECE])
    encoded = buffer.getvalue()
    return _with_serial(encoded) if container == "OGG" else _without_time(encoded)


def _without_time(encoded: bytes) -> bytes:
    """The same file without the time at which its peak was noted: what stands in WAV files of floats."""
    place = encoded.find(b"PEAK", 0, 2 * _HEADER_BYTES)
    return encoded if place < 0 else encoded[: place + 12] + bytes(4) + encoded[place + 16 :]


def _with_serial(ogg: bytes) -> bytes:
    """The same file, whose stream has the number 1 and not one that was drawn."""
    made, start = bytearray(ogg), 0
    while start < len(made):
        made[start + 14 : start + 18] = struct.pack("<I", 1)
        start = _sum_page(made, start)
    return bytes(made)


# --- damage ---


def _truncated(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    name, encoded = whole.any()
    end = int(chance.integers(_HEADER_BYTES if chance.random() < 0.3 else len(encoded)))
    return f"{name} after {end} of {len(encoded)} bytes", encoded[:end]


def _bits_flipped(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    name, encoded = whole.any()
    count = int(2 ** chance.uniform(0, 12))
    bits = np.unpackbits(np.frombuffer(encoded, np.uint8))
    bits[chance.integers(len(bits), size=count)] ^= 1
    return f"{name}, {count} bits", np.packbits(bits).tobytes()


def _header_flipped(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    name, encoded = whole.any()
    made = bytearray(encoded)
    places = chance.integers(min(_HEADER_BYTES, len(made)), size=int(chance.integers(1, 9)))
    for place in places:
        made[place] ^= 1 << int(chance.integers(8))
    return f"{name} at {sorted(places.tolist())}", bytes(made)


def _numbers_replaced(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    """A number of the header becomes one at the edge of what its bits hold."""
    name, encoded = whole.any()
    width = int(chance.choice([1, 2, 4, 8]))
    edges = (0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1)
    value = edges[chance.integers(len(edges))]
    place = int(chance.integers(4, _HEADER_BYTES))
    order = ("little", "big")[chance.integers(2)]
    number = value.to_bytes(width, "little" if order == "little" else "big")
    return f"{name}, {value} at {place}", encoded[:place] + number + encoded[place + width :]


def _bytes_replaced(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    name, encoded = whole.any()
    length = int(2 ** chance.uniform(0, 14))
    place = int(chance.integers(len(encoded)))
    run = (bytes(length), b"\xff" * length, chance.bytes(length))[chance.integers(3)]
    return f"{name}, {length} bytes at {place}", encoded[:place] + run + encoded[place + length :]


def _shuffled(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    """Parts in another order, some of them twice or not at all; the header mostly stays."""
    name, encoded = whole.any()
    size = int(2 ** chance.uniform(5, 12))
    head = 0 if chance.random() < 0.2 else _HEADER_BYTES
    parts = [encoded[start : start + size] for start in range(head, len(encoded), size)]
    order = chance.integers(len(parts), size=len(parts)) if chance.random() < 0.5 else chance.permutation(len(parts))
    return f"{name} in parts of {size}", encoded[:head] + b"".join(parts[index] for index in order)


def _header_swapped(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    """The first bytes of one kind of file before the body of another."""
    (first, head), (second, body) = whole.any(), whole.any()
    end = int(chance.integers(4, _HEADER_BYTES))
    return f"{end} bytes of {first} before {second}", head[:end] + body[end:]


def _extended(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    name, encoded = whole.any()
    length = int(2 ** chance.uniform(0, 18))
    before, what = chance.random() < 0.4, (bytes(length), chance.bytes(length))[chance.integers(2)]
    where = "before" if before else "after"
    return f"{length} bytes {where} {name}", what + encoded if before else encoded + what


# --- headers of what no recording is ---


def _wav_header(
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = _RATE,
    block: int = 2,
    bits: int = 16,
    riff_size: int | None = None,
    data_size: int | None = None,
    body: bytes = b"",
) -> bytes:
    form = struct.pack("<HHIIHH", tag, channels, rate, (rate * block) % 2**32, block, bits)
    data = b"data" + struct.pack("<I", len(body) if data_size is None else data_size) + body
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + data
    return b"RIFF" + struct.pack("<I", len(chunks) if riff_size is None else riff_size) + chunks


_WAV_ABSURDITIES: dict[str, dict[str, int]] = {
    "0 Hz": {"rate": 0},
    "1 Hz": {"rate": 1},
    "10^9 Hz": {"rate": 10**9},
    "2^32-1 Hz": {"rate": 2**32 - 1},
    "0 channels": {"channels": 0, "block": 0},
    "1,000 channels": {"channels": 1_000, "block": 2_000},
    "65,535 channels": {"channels": 65_535, "block": 65_534},
    "0 bits": {"bits": 0},
    "65,535 bits": {"bits": 65_535},
    "blocks of 0 bytes": {"block": 0},
    "2^32-1 bytes of data": {"data_size": 2**32 - 1},
    "2^31 bytes of data": {"data_size": 2**31},
    "2^32-1 bytes of everything": {"riff_size": 2**32 - 1, "data_size": 2**32 - 1},
    "an unknown encoding": {"tag": 0x1234},
    "MP3 in WAV": {"tag": 0x55},
    "ADPCM": {"tag": 2, "block": 65_535, "bits": 4},
}


def _absurd_wav(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    name = tuple(_WAV_ABSURDITIES)[chance.integers(len(_WAV_ABSURDITIES))]
    body = whole.of("WAV", "PCM_16")[44:]
    fields = _WAV_ABSURDITIES[name]
    return f"WAV of {name}", _wav_header(
        tag=fields.get("tag", 1),
        channels=fields.get("channels", 1),
        rate=fields.get("rate", _RATE),
        block=fields.get("block", 2),
        bits=fields.get("bits", 16),
        riff_size=fields.get("riff_size"),
        data_size=fields.get("data_size"),
        body=body,
    )


def _stream_info(rate: int, channels: int, bits: int, frames: int) -> bytes:
    """What FLAC says of its stream in 8 bytes: 20 bits, 3, 5, and 36."""
    packed = (rate << 44) | ((channels - 1) << 41) | ((bits - 1) << 36) | frames
    return packed.to_bytes(8, "big")


_STREAM_INFO = slice(18, 26)
_FLAC_ABSURDITIES: dict[str, tuple[int, int, int, int]] = {
    "0 Hz": (0, 1, 16, 32_000),
    "1 Hz": (1, 1, 16, 32_000),
    "1,048,575 Hz": (2**20 - 1, 1, 16, 32_000),
    "2^36-1 samples": (_RATE, 1, 16, 2**36 - 1),
    "2^32-1 samples": (_RATE, 1, 16, 2**32 - 1),
    "1 sample": (_RATE, 1, 16, 1),
    "8 channels": (_RATE, 8, 16, 32_000),
    "1 bit": (_RATE, 1, 1, 32_000),
    "32 bits": (_RATE, 1, 32, 32_000),
}


def _absurd_flac(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    name = tuple(_FLAC_ABSURDITIES)[chance.integers(len(_FLAC_ABSURDITIES))]
    made = bytearray(whole.of("FLAC", "PCM_16"))
    made[_STREAM_INFO] = _stream_info(*_FLAC_ABSURDITIES[name])
    if chance.random() < 0.3:  # the length of the first block of metadata
        made[5:8] = b"\xff\xff\xff"
        name += ", 16 MiB of metadata"
    return f"FLAC of {name}", bytes(made)


_EXTENDED_RATES: dict[str, bytes] = {
    "0 Hz": bytes(10),
    "infinitely many Hz": b"\x7f\xff" + b"\x80" + bytes(7),
    "NaN Hz": b"\x7f\xff" + b"\xff" * 8,
    "10^9 Hz": b"\x40\x1c\xee\x6b\x28" + bytes(5),
    "-16,000 Hz": b"\xc0\x0c\xfa" + bytes(7),
}
"""Sample rates as 80-bit floats, as AIFF writes them."""


def _absurd_aiff(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    made = bytearray(whole.of("AIFF", "PCM_16"))
    common = made.find(b"COMM") + 8  # channels, frames, bits, rate
    fields = {
        "1,000 channels": (common, b"\x03\xe8"),
        "0 channels": (common, b"\0\0"),
        "-1 channels": (common, b"\xff\xff"),
        "2^32-1 frames": (common + 2, b"\xff" * 4),
        "0 frames": (common + 2, bytes(4)),
        "0 bits": (common + 6, b"\0\0"),
        "32,767 bits": (common + 6, b"\x7f\xff"),
        "2^32-1 bytes": (made.find(b"SSND") + 4, b"\xff" * 4),
        **{name: (common + 8, rate) for name, rate in _EXTENDED_RATES.items()},
    }
    name = tuple(fields)[chance.integers(len(fields))]
    place, value = fields[name]
    made[place : place + len(value)] = value
    return f"AIFF of {name}", bytes(made)


def _absurd_ogg(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    """The identification header, or the position of the last page, is another one; the sums over pages are right."""
    vorbis = chance.random() < 0.5
    made = bytearray(whole.of("OGG", "VORBIS" if vorbis else "OPUS"))
    start = 28  # of the first packet
    channels, rate = (start + 11, start + 12) if vorbis else (start + 9, start + 12)
    last = made.rfind(b"OggS")
    fields = {
        "0 channels": (0, channels, b"\0"),
        "255 channels": (0, channels, b"\xff"),
        "0 Hz": (0, rate, bytes(4)),
        "2^32-1 Hz": (0, rate, b"\xff" * 4),
        "10^9 Hz": (0, rate, struct.pack("<I", 10**9)),
        "2^63-1 samples": (last, last + 6, struct.pack("<q", 2**63 - 1)),
        "-2 samples": (last, last + 6, struct.pack("<q", -2)),
        "2^40 samples": (last, last + 6, struct.pack("<q", 2**40)),
    }
    name = tuple(fields)[chance.integers(len(fields))]
    page, place, value = fields[name]
    made[place : place + len(value)] = value
    _sum_page(made, page)
    return f"OGG {'Vorbis' if vorbis else 'Opus'} of {name}", bytes(made)


def _sum_page(made: bytearray, start: int) -> int:
    """Write the checksum of the page of OGG that begins at `start`; returns where it ends."""
    table = start + 27
    end = table + made[table - 1] + sum(made[table : table + made[table - 1]])
    made[start + 22 : start + 26] = bytes(4)
    made[start + 22 : start + 26] = struct.pack("<I", _ogg_checksum(made[start:end]))
    return end


def _ogg_checksum(page: bytearray) -> int:
    total = 0
    for byte in page:
        total = ((total << 8) & 0xFFFFFFFF) ^ _OGG_TABLE[(total >> 24) ^ byte]
    return total


def _ogg_table() -> tuple[int, ...]:
    """CRC-32 with the polynomial 04c11db7, without reflection (RFC 3533)."""
    table = []
    for index in range(256):
        value = index << 24
        for _ in range(8):
            value = ((value << 1) ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
        table.append(value)
    return tuple(table)


_OGG_TABLE = _ogg_table()


def _absurd_mp3(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    """Tags of any length before the sound, and a first frame that claims any number of frames."""
    encoded = whole.of("MP3", "MPEG_LAYER_III")
    if chance.random() < 0.4:
        size = bytes((0x7F, 0x7F, 0x7F, 0x7F)) if chance.random() < 0.5 else chance.bytes(4)
        return f"MP3 after a tag of {size.hex()}", b"ID3\x04\0\0" + size + encoded
    claim = (0, 1, 2**31, 2**32 - 1)[chance.integers(4)]
    return f"MP3 of {claim} frames", _with_mp3_frames(encoded, claim)


def _with_mp3_frames(mp3: bytes, frames: int) -> bytes:
    """The file with another count of frames in the tag of its first one."""
    place = 8 + max(mp3.find(b"Xing"), mp3.find(b"Info"))
    return mp3[:place] + struct.pack(">I", frames) + mp3[place + 4 :]


# --- what expands to hours ---

_HOUR_S = 3_600


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that claim hours, or expand to hours behind a header that says nothing, or less."""
    hour = _encode(np.zeros(_HOUR_S * 8_000, np.float32), 8_000, "FLAC", "PCM_16")
    yield "FLAC of an hour", hour
    yield "FLAC of an hour, of unknown length", _with_stream_info(hour, 8_000, 1, 0)
    yield "FLAC of an hour that claims a second", _with_stream_info(hour, 8_000, 1, 8_000)
    yield "FLAC of an hour at 4,000 Hz that claims 1 Hz", _with_stream_info(hour, 1, 1, 0)
    wide = _encode(np.zeros((150 * 192_000, 8), np.float32), 192_000, "FLAC", "PCM_16")
    yield "FLAC of 8 channels at 192 kHz, of unknown length", _with_stream_info(wide, 192_000, 8, 0)
    yield "OGG of two hours", _encode(np.zeros(2 * _HOUR_S * 8_000, np.float32), 8_000, "OGG", "VORBIS")
    yield "OGG of an hour in 60 streams", _encode(np.zeros(60 * 8_000, np.float32), 8_000, "OGG", "VORBIS") * 60
    yield "MP3 of 20 minutes", (long := _encode(np.zeros(1_200 * 8_000, np.float32), 8_000, "MP3", "MPEG_LAYER_III"))
    yield "MP3 of 20 minutes that claims one frame", _with_mp3_frames(long, 1)
    yield "WAV of a year", _wav_header(rate=4_000, block=1, bits=8, data_size=2**32 - 1, body=bytes(4_000 * 700))
    yield "WAV of 65,535 channels", _wav_header(channels=65_535, block=65_534, body=bytes(2**22))


def _with_stream_info(flac: bytes, rate: int, channels: int, frames: int) -> bytes:
    return flac[:18] + _stream_info(rate, channels, 16, frames) + flac[26:]


# --- containers in containers ---


def _nested(whole: _Whole, chance: Generator) -> tuple[str, bytes]:
    name, inner = whole.any()
    depth = int(2 ** chance.uniform(0, 10))
    outer = ("a WAV's samples", "an MP3's tag", "a chunk of a WAV", "lists in lists", "boxes in boxes", "itself again")
    choice = outer[chance.integers(len(outer))]
    if choice == "a WAV's samples":
        return f"{name} as {choice}", _wav_header(tag=int(chance.choice([1, 0x55, 0x674F, 0xF1AC])), body=inner)
    if choice == "an MP3's tag":
        frame = b"GEOB" + struct.pack(">I", len(inner)) + b"\0\0" + inner
        size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
        return f"{name} in {choice}", b"ID3\x03\0\0" + size + frame + whole.of("MP3", "MPEG_LAYER_III")
    if choice == "a chunk of a WAV":
        chunk = b"LIST" + struct.pack("<I", len(inner)) + inner + b"\0" * (len(inner) % 2)
        return f"{name} in {choice}", b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WAVE" + chunk
    if choice == "lists in lists":
        return f"{name} in {depth} {choice}", _wrapped(inner, depth, lambda body: b"LIST" + _le32(len(body)) + body)
    if choice == "boxes in boxes":
        made = _wrapped(inner, depth, lambda body: struct.pack(">I", len(body) + 8) + b"moov" + body)
        return f"{name} in {depth} {choice}", struct.pack(">I", 16) + b"ftypM4A \0\0\0\0" + made
    return f"{name} {depth} times", inner * min(depth, 16)


def _le32(value: int) -> bytes:
    return struct.pack("<I", value)


def _wrapped(body: bytes, depth: int, wrap: Callable[[bytes], bytes]) -> bytes:
    for _ in range(depth):
        body = wrap(body)
    return body


KINDS: dict[str, Callable[[_Whole, Generator], tuple[str, bytes]]] = {
    "truncated": _truncated,
    "bits flipped": _bits_flipped,
    "bits of the header flipped": _header_flipped,
    "numbers replaced": _numbers_replaced,
    "bytes replaced": _bytes_replaced,
    "shuffled": _shuffled,
    "headers swapped": _header_swapped,
    "extended": _extended,
    "absurd WAV": _absurd_wav,
    "absurd FLAC": _absurd_flac,
    "absurd AIFF": _absurd_aiff,
    "absurd OGG": _absurd_ogg,
    "absurd MP3": _absurd_mp3,
    "nested": _nested,
}
"""What is done to a file, by name; they take turns."""
