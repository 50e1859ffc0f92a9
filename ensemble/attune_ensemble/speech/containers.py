"""Lengths in the headers of sound files: detection of truncated files, and repair of headers of streamed files.

A program that writes to a pipe cannot seek back to fill in the length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from attune_client.protocol.errors import TruncatedAudio, UnreadableAudio

__all__ = ["check_complete", "fill_in_length"]

_OGG_HEADER = 27  # bytes before a page's segment table
_RIFF_LIKE = {b"RIFF": "<", b"RIFX": ">", b"FORM": ">"}
_LARGE_32 = 0x7F000000
_UNKNOWN_64 = (0, 2**63 - 1, 2**64 - 1)
_MOST_CHUNKS = 10_000
_MOST_BOXES = 100_000  # a phone that writes in fragments makes some of them a second
_TO_THE_END_32 = b"\xff\xff\xff\xff"


def check_complete(encoded: bytes) -> None:
    """Check what the decoder of a file would not tell, or only after a long time.

    Raises:
        TruncatedAudio: the file is cut off, and its decoder would read it without an error.
        UnreadableAudio: it consists of more parts than any recording, which a few bytes each make endless to read.
    """
    announced = _announced_length(encoded)
    if announced is not None and announced > len(encoded) + 1:  # some writers omit the last padding byte
        raise TruncatedAudio(f"the file has {len(encoded)} of the {announced} bytes that its header announces")
    if encoded[:4] == b"OggS" and not _last_ogg_page_is_whole(encoded):
        raise TruncatedAudio("the OGG stream breaks off in the middle of a page")


def fill_in_length(encoded: bytes) -> bytes:
    """Return the recording with its real length in the header, if that is 0 or the largest number.

    For WAV, RF64, AU and CAF, where libsndfile takes such a length literally. It handles unknown lengths of other
    formats.
    """
    if encoded[:4] == b".snd" and encoded[8:12] == b"\0\0\0\0":
        return encoded[:8] + _TO_THE_END_32 + encoded[12:]
    if encoded[:4] in (b"RIFF", b"RF64") and encoded[8:12] == b"WAVE":
        return _fill_in_wave(encoded)
    if encoded[:4] == b"caff":
        return _fill_in_caf(encoded)
    return encoded


def _announced_length(encoded: bytes) -> int | None:
    """Return the file's size in bytes according to its header; None where the header does not contain it."""
    kind = encoded[:4]
    if kind in _RIFF_LIKE and len(encoded) >= 12:
        return _announced_by_riff(encoded, _RIFF_LIKE[kind])
    if kind == b".snd" and len(encoded) >= 12:
        offset, size = struct.unpack_from(">II", encoded, 4)
        return None if _is_unknown(size) else offset + size
    if kind == b"RF64":
        return _announced_by_ds64(encoded)
    if kind == b"riff" and len(encoded) >= 24:  # Sony's 64-bit WAV; its size counts the whole file
        size = struct.unpack_from("<Q", encoded, 16)[0]
        return None if size in _UNKNOWN_64 else size
    if kind == b"caff":
        return _announced_by_caf(encoded)
    if encoded[4:8] == b"ftyp":
        return max(_iso_box_ends(encoded))
    return None


def _is_unknown(size: int) -> bool:
    """Return whether a 32-bit size is a streaming program's placeholder: 0, or one of many near 2 or 4 GB.

    All of these are above the largest accepted recording.
    """
    return size == 0 or size >= _LARGE_32


def _announced_by_riff(encoded: bytes, order: str) -> int | None:
    """Return the announced size of the file, or the end of its samples if that is greater."""
    size: int = struct.unpack_from(f"{order}I", encoded, 4)[0]
    ends = [] if _is_unknown(size) else [size + 8]
    for name, body, length in _chunks(encoded, 12, f"{order}4sI"):
        if name in (b"data", b"SSND") and not _is_unknown(length):
            ends.append(body + length)
    return max(ends, default=None)


def _announced_by_caf(encoded: bytes) -> int | None:
    for name, body, size in _chunks(encoded, 8, ">4sQ"):
        if name == b"data":
            return None if size in _UNKNOWN_64 else body + size
    return None


def _announced_by_ds64(encoded: bytes) -> int | None:
    for name, body, size in _chunks(encoded, 12, "<4sI"):
        if name == b"ds64" and size >= 24 and body + 24 <= len(encoded):
            announced: int = struct.unpack_from("<Q", encoded, body)[0]
            return None if announced in _UNKNOWN_64 else announced + 8
    return None


def _iso_box_ends(encoded: bytes) -> Iterator[int]:
    """Yield the end offset of each top-level box of an MP4, M4A or 3GP file; the last may exceed the file."""
    start = count = 0
    while start + 8 <= len(encoded):
        count = _counted(count, _MOST_BOXES)
        size: int = struct.unpack_from(">I", encoded, start)[0]
        if size == 1 and start + 16 <= len(encoded):
            size = struct.unpack_from(">Q", encoded, start + 8)[0]
        end = len(encoded) if size == 0 else start + max(size, 8)
        yield end
        start = end


def _last_ogg_page_is_whole(encoded: bytes) -> bool:
    start = encoded.rfind(b"OggS")
    table = start + _OGG_HEADER
    if table > len(encoded):
        return False
    count = encoded[table - 1]
    return len(encoded) >= table + count + sum(encoded[table : table + count])


def _chunks(encoded: bytes, start: int, header: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset of the body and announced size of each chunk from `start` on."""
    width, count = struct.calcsize(header), 0
    while start + width <= len(encoded):
        count = _counted(count, _MOST_CHUNKS)
        name, size = struct.unpack_from(header, encoded, start)
        yield name, start + width, size
        start += width + size + (size & 1 if header[-1] == "I" else 0)  # those of 32 bits begin at even offsets


def _counted(count: int, most: int) -> int:
    """Return the count with one more part; raises `UnreadableAudio` where that is one too many."""
    if count == most:
        raise UnreadableAudio(f"the file consists of more than {most:,} parts; no recording does")
    return count + 1


def _fill_in_wave(encoded: bytes) -> bytes:
    sizes = None  # offset of RF64's own 64-bit sizes
    for name, body, size in _chunks(encoded, 12, "<4sI"):
        if name == b"ds64" and size >= 24:
            sizes = body
        if name != b"data":
            continue
        if sizes is not None:
            return _fill_in_ds64(encoded, sizes, len(encoded) - body)
        return encoded[: body - 4] + _TO_THE_END_32 + encoded[body:] if _is_unknown(size) else encoded
    return encoded


def _fill_in_ds64(encoded: bytes, sizes: int, data_size: int) -> bytes:
    known: int = struct.unpack_from("<Q", encoded, sizes + 8)[0]
    if known not in _UNKNOWN_64:
        return encoded
    # The third number counts samples; libsndfile computes it from the data if it is 0.
    return encoded[:sizes] + struct.pack("<QQQ", len(encoded) - 8, data_size, 0) + encoded[sizes + 24 :]


def _fill_in_caf(encoded: bytes) -> bytes:
    for name, body, size in _chunks(encoded, 8, ">4sQ"):
        if name == b"data":
            known = size not in _UNKNOWN_64
            return encoded if known else encoded[: body - 8] + struct.pack(">Q", len(encoded) - body) + encoded[body:]
    return encoded
