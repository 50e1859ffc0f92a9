"""From codes to audio, behind the decoder.

On a GPU the codec has a thread and a stream of its own, so that no step waits for it. On a CPU it takes its turn
between two steps: both use every core already, and side by side they would wait for each other at every operation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

import torch

from attune_client.protocol.errors import ServerUnavailable
from attune_ensemble.music.musicgen.codec import CodecStream
from attune_ensemble.music.musicgen.devices import on_device
from attune_ensemble.music.musicgen.failures import as_attune_error
from attune_ensemble.music.musicgen.requests import MusicStream
from attune_ensemble.music.musicgen.threads import has_ended

__all__ = ["CodecRunner", "Codes"]

_log = logging.getLogger(__name__)
_ENDED = "the codec of the music engine has failed; the server's log says more"


@dataclass(frozen=True, slots=True)
class Codes:
    """Whole frames [K, F] that follow what `codec` has had; `final`: nothing follows them."""

    stream: MusicStream
    codec: CodecStream
    codes: torch.Tensor
    final: bool


class CodecRunner:
    """Decodes in the order of `submit`, and puts the audio into the streams.

    `decoded` is called after each, before a stream ends, with the stream and whether that was its first audio. What
    fails ends its own stream; what ends the thread ends all that it still had to decode.
    """

    def __init__(
        self, device: torch.device, decoded: Callable[[MusicStream, bool], None], *, threaded: bool | None = None
    ) -> None:
        """`threaded`: on a thread of its own, as it is by default on a GPU."""
        self._decoded = decoded
        self._device = device
        self._queue: SimpleQueue[tuple[Codes, torch.cuda.Event | None] | None] = SimpleQueue()
        self._submitting = threading.Lock()
        self._ended = False
        self._current: Codes | None = None  # what the thread decodes, or has decoded last
        self._thread: threading.Thread | None = None
        if device.type == "cuda" if threaded is None else threaded:
            self._thread = threading.Thread(target=on_device(device, self._run), name="musicgen-codec", daemon=True)
            self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether it decodes."""
        return not self._ended

    def submit(self, work: Codes) -> None:
        """Decode it: now, or behind what was submitted before.

        Raises:
            ServerUnavailable: the thread has ended.
        """
        if self._thread is None:
            self._decode(work)
            return
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        with self._submitting:
            if self._ended:
                raise ServerUnavailable(_ENDED)
            self._queue.put((work, event))

    def close(self) -> bool:
        """Return whether everything submitted has been decoded, which is waited for no longer than `CLOSE_S`.

        Where it has not, the streams that still wait for it end with an error.
        """
        if self._thread is None:
            return True
        self._queue.put(None)
        if has_ended(self._thread):
            return True
        waiting = [self._current]
        while not self._queue.empty():
            item = self._queue.get()
            waiting.append(item and item[0])
        self._queue.put(None)  # for the thread, if it comes so far
        for work in waiting:
            if work is not None:
                work.stream.fail(ServerUnavailable(_ENDED))
        return False

    def _run(self) -> None:
        item = None
        try:
            side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
            with torch.cuda.stream(side):
                while (item := self._queue.get()) is not None:
                    self._take(*item, side)
        except BaseException:
            _log.critical("the codec's thread ends", exc_info=True)
        with self._submitting:
            self._ended = True
        while item is not None or not self._queue.empty():
            if item is not None:
                item[0].stream.fail(ServerUnavailable(_ENDED))
            item = None if self._queue.empty() else self._queue.get()

    def _take(self, work: Codes, ready: torch.cuda.Event | None, side: torch.cuda.Stream | None) -> None:
        self._current = work
        try:
            if ready is not None and side is not None:
                side.wait_event(ready)
                work.codes.record_stream(side)  # their memory must last until this stream has read them
            self._decode(work)
        except Exception as error:
            _log.exception("decoding music failed")
            work.stream.fail(as_attune_error(error))

    def _decode(self, work: Codes) -> None:
        stream = work.stream
        if stream.ended:
            return
        silent = stream.first_audio_s is None
        try:
            stream.put(work.codec.push(work.codes, final=work.final))
        except Exception as error:
            _log.exception("decoding music failed")
            stream.fail(as_attune_error(error))
        self._decoded(stream, silent and stream.first_audio_s is not None)
        if work.final:
            stream.complete()
