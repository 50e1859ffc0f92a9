"""The running batch: requests join and leave it at any step, on one thread that owns the decoder.

The loop admits what waits (first come, first served), steps every slot that may go on, and hands whole frames to the
codec. A slot waits, without being stepped, while its listener has enough audio that it has not taken. Slots in
use are kept in front, so that a step is over a slice of the preallocated tensors.

Whatever fails in the loop ends the pieces that play, because their slots may be half changed; those that wait for a
slot get one. Want of memory ends one piece alone. After a few failures without a step in between the engine gives up:
it ends every request, and refuses new ones at once.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from attune_client.protocol.errors import InvalidOption, RequestTimeout, ServerUnavailable
from attune_client.protocol.sampling import SamplingSettings
from attune_ensemble.music.musicgen.codec import ChunkedCodec, CodecStream
from attune_ensemble.music.musicgen.conditioning import Conditioner
from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.decoding import CodecRunner, Codes
from attune_ensemble.music.musicgen.devices import on_device
from attune_ensemble.music.musicgen.failures import EngineBusy, as_attune_error
from attune_ensemble.music.musicgen.requests import Generation, MusicStream
from attune_ensemble.music.musicgen.settings import EngineSettings
from attune_ensemble.music.musicgen.state import BatchState, Piece
from attune_ensemble.music.musicgen.statistics import EngineCounters, EngineStatistics
from attune_ensemble.music.musicgen.stepping import Stepper
from attune_ensemble.music.musicgen.threads import has_ended

__all__ = ["MusicGenEngine"]

_log = logging.getLogger(__name__)

_TOLERATED_FAILURES = 3
"""Failures in a row after which the engine gives up."""

_CLOSED = "the music engine is closing"
_FAILED = "the music engine has failed and makes no more music; the server's log says more"


@dataclass(slots=True)
class _Slot:
    """The host's side of one request in the batch: `position` mirrors the device's, `sent` frames went to the codec.

    `prompt` is the one that the music is conditioned on now.
    """

    stream: MusicStream
    piece: Piece
    codec: CodecStream
    chunk_frames: int
    prompt: str
    position: int = 0
    dropped: int = 0
    sent: int = 0
    waiting: bool = False
    done: bool = False

    @property
    def window_sent(self) -> int:
        """`sent`, counted from the start of the window."""
        return self.sent - self.dropped


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that no slot is free for yet."""

    stream: MusicStream
    piece: Piece


class MusicGenEngine:
    """Makes music from prompts, many at a time. `submit` from any thread; iterate over the stream that it returns."""

    def __init__(
        self, decoder: Decoder, codec: ChunkedCodec, conditioner: Conditioner, settings: EngineSettings
    ) -> None:
        self.settings, self.codec = settings, codec
        self._decoder, self._conditioner = decoder, conditioner
        rate = codec.frame_rate
        positions = min(math.ceil(settings.window_s * rate), decoder.positions.shape[0])
        self._state = BatchState(decoder, settings.slots, positions, settings.max_prompt_tokens)
        self._stepper = Stepper(self._state)
        device = decoder.embedding.weight.device
        on_device(device, self._stepper.prepare)()  # before any request: it takes longer than many steps
        self._kept = max(1, min(round(settings.kept_s * rate), positions - 1))
        self._queue: deque[_Waiting] = deque()
        self._slots: list[_Slot] = []  # in the order of the device's slots; those that are stepped come first
        self._seating: _Waiting | None = None  # out of the queue, and not yet in its slot
        self._changed = threading.Condition()
        self._closing = self._gave_up = False
        self._failures = 0  # in a row
        self._counters = EngineCounters(rate)
        self._runner = CodecRunner(device, self._decoded)
        self._thread = threading.Thread(target=on_device(device, self._run), name="musicgen-decoder", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that is still computing as the interpreter ends would abort it

    # Any thread

    def submit(self, request: Generation) -> MusicStream:
        """Queue a request.

        Raises:
            InvalidOption: its length is below one frame, or its prompt too long.
            EngineBusy: the queue is full, or the engine is closing.
            ServerUnavailable: the engine has failed for good.
        """
        frames = round(request.duration_s * self.codec.frame_rate)
        if frames < 1:
            raise InvalidOption(f"duration_s must be at least one frame ({1 / self.codec.frame_rate:.3g} s)")
        self._conditioner.check(request.prompt)
        stream = MusicStream(request, self.codec.sample_rate, self._wake)
        with self._changed:
            if self._gave_up:
                raise ServerUnavailable(_FAILED)
            if self._closing:
                raise EngineBusy(_CLOSED)
            # A free slot counts: those who come at once wait for the loop to seat them.
            if len(self._streams()) >= self.settings.slots + self.settings.queue:
                raise EngineBusy(f"{self.settings.queue} requests for music are waiting already")
            self._queue.append(_Waiting(stream, Piece(frames, request.seed, request.sampling)))
            self._changed.notify_all()
        return stream

    def warm_up(self) -> None:
        """Make a short piece that nobody hears: the first listener then finds libraries, memory and graphs ready.

        Raises whatever keeps it from playing; call it before anybody submits, because what was counted is forgotten.
        """
        for _ in self.submit(Generation("music", self.settings.first_chunk_s, 0, SamplingSettings())):
            pass
        self._counters = EngineCounters(self.codec.frame_rate)

    @property
    def healthy(self) -> bool:
        """Whether it makes music, as it does until it fails for good."""
        return not self._gave_up

    def statistics(self) -> EngineStatistics:
        """What has been done, and what is going on."""
        with self._changed:
            waiting = len(self._queue) + (self._seating is not None)
            return self._counters.read(len(self._slots), waiting, healthy=self.healthy)

    def close(self) -> None:
        """End every request that is not complete, and the engine's threads.

        A thread that has not ended within `CLOSE_S` is left alone, with the memory that it uses, until it ends by
        itself; nobody waits for its music any longer. As the interpreter ends, it is given as long once more.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        decoder_ended = has_ended(self._thread)
        codec_ended = self._runner.close()
        if not (decoder_ended and codec_ended):
            with self._changed:
                streams = self._streams()
            for stream in streams:
                stream.fail(EngineBusy(_CLOSED))
            return
        atexit.unregister(self.close)
        # Gigabytes on a GPU, which the engine that is made in place of a failed one needs.
        for name in ("_stepper", "_state"):
            self.__dict__.pop(name, None)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _streams(self) -> list[MusicStream]:
        """Everybody who has a slot or waits for one; to be called with the lock."""
        waiting = [*self._queue] if self._seating is None else [self._seating, *self._queue]
        return [slot.stream for slot in self._slots] + [item.stream for item in waiting]

    # The decoder's thread

    @torch.inference_mode()
    def _run(self) -> None:
        gave_up = False
        try:
            while self._turn():
                pass
        except BaseException:  # whatever it is, nobody may wait for a thread that has ended
            _log.critical("the music engine gives up", exc_info=True)
            gave_up = True
        with self._changed:
            self._gave_up = gave_up
            streams = self._streams()
        for stream in streams:
            stream.fail(ServerUnavailable(_FAILED) if gave_up else EngineBusy(_CLOSED))

    def _turn(self) -> bool:
        """One step; False when the engine closes. Raises where it makes no sense to go on."""
        try:
            if not self._gather():
                return False
            self._advance()
            self._failures = 0
        except Exception as error:  # the next request must find a working engine
            _log.exception("the music engine failed")
            self._failures += 1
            self._start_over(error)
            if self._failures == _TOLERATED_FAILURES or not self._runner.healthy:
                raise
        return True

    def _start_over(self, cause: Exception) -> None:
        """End what was in the slots, which may be half changed, and whatever was about to get one."""
        with self._changed:
            streams = [slot.stream for slot in self._slots]
            if self._seating is not None:
                streams.append(self._seating.stream)
            self._slots, self._seating = [], None
        for stream in streams:
            stream.fail(as_attune_error(cause))
        for _ in streams:
            self._counters.failed()

    def _gather(self) -> bool:
        """Let requests leave and join until there is a slot to step; False when the engine closes."""
        while True:
            self._remove_ended()
            self._admit()
            self._arrange()
            with self._changed:
                if self._closing:
                    return False
                if any(not slot.waiting for slot in self._slots):
                    return True
                if not self._queue or len(self._slots) == self.settings.slots:
                    # Deadlines of requests that only wait are looked at ten times a second.
                    self._changed.wait(timeout=0.1 if self._queue or self._slots else None)

    def _remove_ended(self) -> None:
        with self._changed:
            streams = self._streams()
        for stream in streams:
            if stream.overdue:
                stream.fail(RequestTimeout("the music was not finished in time"))
        for index in reversed(range(len(self._slots))):
            if self._slots[index].done or self._slots[index].stream.ended:
                self._remove(index)
        with self._changed:
            self._queue = deque(item for item in self._queue if not item.stream.ended)

    def _remove(self, index: int) -> None:
        """Free a slot: the last one takes its place."""
        last = len(self._slots) - 1
        self._swap(index, last)
        with self._changed:
            self._slots.pop()

    def _admit(self) -> None:
        while len(self._slots) < self.settings.slots:
            with self._changed:
                self._seating = self._next_waiting()
            if self._seating is None:
                return
            self._begin(self._seating)

    def _next_waiting(self) -> _Waiting | None:
        """Take the first one out of the queue that has not been given up meanwhile; to be called with the lock."""
        while self._queue:
            waiting = self._queue.popleft()
            if waiting.stream.overdue:
                waiting.stream.fail(RequestTimeout("the music was not finished in time"))
            if not waiting.stream.ended:
                return waiting
        return None

    def _begin(self, waiting: _Waiting) -> None:
        slot, stream = None, waiting.stream
        try:
            prompt = stream.request.prompt
            self._state.begin(len(self._slots), waiting.piece, self._text(prompt))
            first = max(1, math.ceil(self.settings.first_chunk_s * self.codec.frame_rate))
            slot = _Slot(stream, waiting.piece, self.codec.stream(), first, prompt)
            self._counters.admitted(time.monotonic() - stream.submitted_s)
        except Exception as error:
            _log.exception("a request for music could not begin")
            slot = None
            stream.fail(as_attune_error(error))
            self._counters.failed()
        with self._changed:
            self._seating = None
            if slot is not None:
                self._slots.append(slot)

    def _arrange(self) -> None:
        """Decide who waits for its listener, and bring the others to the front."""
        for slot in self._slots:
            # What is on its way through the codec counts: a GPU's decoder is many times faster.
            ahead = slot.sent / self.codec.frame_rate - slot.stream.taken_s
            slot.waiting = ahead > self.settings.ahead_s * (0.5 if slot.waiting else 1.0)
        front = 0
        for index, slot in enumerate(self._slots):
            if not slot.waiting:
                self._swap(front, index)
                front += 1

    def _swap(self, first: int, second: int) -> None:
        if first == second:
            return
        one, other = self._slots[first], self._slots[second]
        self._state.swap(first, second, max(one.position, other.position) + 1)
        self._slots[first], self._slots[second] = other, one

    def _advance(self) -> None:
        """Step the slots in front once, and pass on what became whole."""
        running = [slot for slot in self._slots if not slot.waiting]
        try:
            for index, slot in enumerate(running):
                if slot.position == self._state.positions:
                    culprit = slot
                    self._slide(index, slot)
            culprit = max(running, key=lambda slot: slot.stream.submitted_s)
            self._stepper.step(len(running), max(slot.position for slot in running) + 1)
        except torch.cuda.OutOfMemoryError as error:
            self._make_room(culprit, error)
            return
        self._counters.stepped()
        for index, slot in enumerate(running):
            slot.position += 1
            self._pass_on(index, slot)

    def _slide(self, index: int, slot: _Slot) -> None:
        """Make room in a full window; everything whole goes to the codec first.

        What stays is read again, with the prompt of what follows.
        """
        self._send(index, slot, self._whole(slot))
        self._follow_plan(index, slot)
        drop = slot.position - self._kept
        self._state.slide(index, slot.position, drop)
        slot.position -= drop
        slot.dropped += drop

    def _whole(self, slot: _Slot) -> int:
        """How many frames of the piece are whole by now."""
        return min(slot.piece.frames, slot.dropped + slot.position - self._state.pattern.longest_delay)

    def _pass_on(self, index: int, slot: _Slot) -> None:
        whole = self._whole(slot)
        if whole == slot.piece.frames:
            self._send(index, slot, whole, final=True)
        elif whole - slot.sent >= slot.chunk_frames + (self.codec.lookahead if not slot.sent else 0):
            self._send(index, slot, whole)
            slot.chunk_frames = min(2 * slot.chunk_frames, self._longest_chunk)
            self._follow_plan(index, slot)

    def _follow_plan(self, index: int, slot: _Slot) -> None:
        """Condition a slot on another prompt from its next frame on, where its plan says so; the music goes on.

        A prompt that cannot be used, and a plan that fails, end that piece alone.
        """
        if slot.stream.ended:
            return
        try:
            prompt = slot.stream.request.prompt_at((slot.dropped + slot.position) / self.codec.frame_rate)
            if prompt != slot.prompt:
                self._decoder.set_text(self._state.cache, index, self._text(prompt))
                slot.prompt = prompt
        except Exception as error:
            _log.exception("a piece of music could not follow its plan")
            slot.stream.fail(as_attune_error(error))
            self._counters.failed()

    def _text(self, prompt: str) -> Tensor:
        """Hidden states [T, D] of a prompt."""
        return self._conditioner.states(prompt, self._decoder.shape.width)

    @property
    def _longest_chunk(self) -> int:
        return max(1, math.ceil(self.settings.longest_chunk_s * self.codec.frame_rate))

    def _send(self, index: int, slot: _Slot, whole: int, *, final: bool = False) -> None:
        if whole <= slot.sent and not final:
            return
        codes = self._state.codes(index, slot.window_sent, whole - slot.dropped)
        self._counters.made(max(0, whole - slot.sent))
        slot.sent = max(slot.sent, whole)
        if final:
            # The slot is free from here on; the stream ends when the codec has caught up.
            slot.done = True
            self._counters.finished()
        self._runner.submit(Codes(slot.stream, slot.codec, codes, final))

    def _make_room(self, culprit: _Slot, cause: Exception) -> None:
        """End one piece for want of memory: its window is half slid, or it came last. The others repeat the step."""
        _log.error("a piece ends for want of memory", exc_info=cause)
        culprit.stream.fail(as_attune_error(cause))
        self._counters.failed()
        for index, slot in enumerate(self._slots):
            self._state.position[index] = slot.position  # as the failed step may have moved some
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # The thread of the codec, which on a CPU is the decoder's

    def _decoded(self, stream: MusicStream, first: bool) -> None:
        if first and stream.first_audio_s is not None:
            self._counters.heard(stream.first_audio_s - stream.submitted_s)
        self._wake()
