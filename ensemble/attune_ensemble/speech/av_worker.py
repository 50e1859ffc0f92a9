"""The process that decodes with PyAV: a file on standard input, 16 kHz mono float32 or an error on standard output.

Started by `attune_ensemble.speech.av_process`; nothing imports it. It sets resource limits before it reads the file:
CPU time, memory, and, once everything is loaded, no further file descriptors.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
import resource
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attune_client.protocol.errors import EmptyAudio, InvalidAudio, TruncatedAudio, UnreadableAudio
from attune_ensemble.speech.audio import MonoStream
from attune_ensemble.speech.av_process import MAX_CPU_S, MAX_MEMORY, REFUSED

if TYPE_CHECKING:
    import av

_DEMUXERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,gsm,loas,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpc,mpc8,mpeg,mpegts,ogg,rm,tta,w64,wav,wv"
)
"""Container formats that FFmpeg may probe, without playlists and other formats that refer to further files."""

_TOLERANCE_S = 0.5  # tolerated difference to the announced length; encoders pad and trim
_MAX_BROKEN = 0.05  # tolerated fraction of undecodable packets; players skip them as well
_MOST_BROKEN = 1000  # decoding stops after this many


def main() -> int:
    """Decode standard input to standard output; the exit status tells samples from an error."""
    _limit(resource.RLIMIT_CPU, MAX_CPU_S)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    try:
        encoded = sys.stdin.buffer.read()
        _limit(resource.RLIMIT_AS, MAX_MEMORY + 2 * len(encoded))
        waveform = _decode(encoded)
    except InvalidAudio as error:
        sys.stdout.buffer.write(error.to_wire().encode())
        return REFUSED
    except MemoryError:
        sys.stdout.buffer.write(UnreadableAudio("decoding the recording takes too much memory").to_wire().encode())
        return REFUSED
    sys.stdout.buffer.write(waveform.tobytes())
    return 0


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (bounded, bounded))


def _decode(encoded: bytes) -> npt.NDArray[np.float32]:
    try:
        import av
    except ImportError as error:
        raise UnreadableAudio(
            "this kind of recording is decoded with PyAV, which the server does not have (pip install av); "
            "send WAV, FLAC, MP3 or OGG"
        ) from error
    av.logging.set_level(None)
    _import_all_of(av)
    _limit(resource.RLIMIT_NOFILE, 3)  # standard input, output and error
    try:
        with av.open(
            io.BytesIO(encoded),
            mode="r",
            metadata_errors="ignore",
            options={"format_whitelist": _DEMUXERS, "protocol_whitelist": ""},
        ) as container:
            return _read_mono_16k(container)
    except av.FFmpegError as error:
        raise UnreadableAudio(
            f"not a readable recording ({error.strerror}); send WAV, FLAC, MP3, OGG, M4A, AMR or WebM"
        ) from error


def _import_all_of(package: types.ModuleType) -> None:
    """Import all of PyAV: it imports modules lazily, which fails once no file may be opened."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _read_mono_16k(container: av.container.InputContainer) -> npt.NDArray[np.float32]:
    if not container.streams.audio:
        raise EmptyAudio("the file holds no sound" if container.streams.video else "the file holds no audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise UnreadableAudio("the sound is in a codec that cannot be decoded, or is protected against copying")
    announced_s = _announced_s(container, stream)
    decoding = _Decoding(container, stream)
    mono = MonoStream()
    decoded_s = 0.0
    for frame in decoding.frames():
        mono.add(_as_float(frame), frame.sample_rate)
        decoded_s += frame.samples / frame.sample_rate
    decoding.check(decoded_s)
    if announced_s is not None and decoded_s < announced_s - max(_TOLERANCE_S, 0.02 * announced_s):
        raise TruncatedAudio(
            f"the file ends after {decoded_s:.1f} of the {announced_s:.1f} s that its header announces"
        )
    return mono.finish()


class _Decoding:
    """Decodes one stream and counts the packets that could not be decoded."""

    def __init__(self, container: av.container.InputContainer, stream: Any) -> None:
        self._container = container
        self._stream = stream
        self._packets = self._broken = 0
        self._last_is_broken = False

    def frames(self) -> Iterator[av.AudioFrame]:
        """Yield every frame that can be decoded, up to the first unreadable position of the file."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
                self._count(packet.size, broken=False)
            except av.FFmpegError:
                self._count(1, broken=True)
                if self._broken > _MOST_BROKEN:
                    return
                continue
            yield from frames

    def _count(self, size: int, *, broken: bool) -> None:
        if size == 0:  # the packet that flushes the decoder
            return
        self._packets += 1
        self._broken += broken
        self._last_is_broken = broken

    def check(self, decoded_s: float) -> None:
        """Raise an `InvalidAudio` if more packets were broken than is tolerated."""
        if self._broken and decoded_s == 0:
            raise UnreadableAudio("the sound cannot be decoded; it is damaged, or protected against copying")
        if self._last_is_broken or self._broken > _MAX_BROKEN * self._packets:
            raise TruncatedAudio(f"{self._broken} of {self._packets} parts of the recording cannot be decoded")


def _announced_s(container: av.container.InputContainer, stream: Any) -> float | None:
    """Return the stream's length in seconds by its header; None where the container's header is not reliable."""
    if container.format.name.split(",")[0] not in ("mov", "matroska"):
        return None  # an estimate from the bit rate, or from the last page found
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def _as_float(frame: av.AudioFrame) -> npt.NDArray[np.float32]:
    """Convert one frame to [N, C] float32, full scale at 1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype.kind == "f":
        return samples.T.astype(np.float32, copy=False)
    bits = 8 * samples.dtype.itemsize
    offset = 2.0 ** (bits - 1) if samples.dtype.kind == "u" else 0.0
    return ((samples.T - offset) / 2.0 ** (bits - 1)).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
