"""The composer as a music engine: from a request to chunks of audio."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from attune_client.protocol.errors import InvalidOption
from attune_client.protocol.music_spec import DYNAMICS
from attune_ensemble.music.composer.composition import Composition, compose
from attune_ensemble.music.composer.dynamics import lift_db, stroke_gain_db
from attune_ensemble.music.composer.mastering import Forecast, GainRider, Limiter
from attune_ensemble.music.composer.performance import TIMING_LIMIT_S, Stroke, perform
from attune_ensemble.music.composer.renderer import Renderer
from attune_ensemble.music.composer.room import BLOCK, Room
from attune_ensemble.music.composer.samples import SAMPLE_RATE, SampleLibrary
from attune_ensemble.music.composer.score import Phrase, Score
from attune_ensemble.music.engine import Audio, MusicRequest

_HORIZON_S = 32.0
"""How far the loudness forecast reaches, by what the plan is now."""

_FADE_OUT_S = 3.2


class ComposerEngine:
    """Composes from the plan's specifications (the prompt's words are not read) and plays with sampled instruments.

    Each phrase is as the plan says at its start: tempo, key, players and dynamics may change from one to the next, and
    the room's tone and the loudness go with the dynamics. Music is made as it is taken, and the plan is asked
    for a phrase as it begins, up to `LOOKAHEAD_S` further.

    The rooms are built with the engine; samples are loaded on first use and cached for later pieces, within about
    96 MiB. Thread-safe.
    """

    name = "composer"
    sample_rate = SAMPLE_RATE

    def __init__(self) -> None:
        self._library = SampleLibrary()
        for dynamics in DYNAMICS:
            Room(dynamics)

    def generate(self, request: MusicRequest, chunk_s: float) -> Generator[Audio, None, None]:
        """Yield the piece as stereo chunks [N, 2] of `chunk_s` seconds, the last one shorter; `duration_s` in all.

        The same request gives the same samples, whatever the size of the chunks. Raises `InvalidOption` for a chunk
        that is not longer than nothing, and for settings of sampling, of which there is none here.
        """
        if request.sampling is not None:
            raise InvalidOption(
                "temperature, top_k, top_p and guidance are for an engine that samples: the composer samples nothing"
            )
        if not (math.isfinite(chunk_s) and chunk_s > 0):
            raise InvalidOption(f"chunk_s must be greater than 0, not {chunk_s}")
        return _chunks(self._blocks(request), max(1, round(chunk_s * SAMPLE_RATE)))

    def metrics(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def close(self) -> None:
        """Forget the samples."""
        self._library = SampleLibrary()

    def score(self, request: MusicRequest) -> Score:
        """Return the score of the piece that `generate` renders."""
        return Score.of(compose(request.plan, request.seed, request.duration_s))

    def _blocks(self, request: MusicRequest) -> Iterator[Audio]:
        """Yield the finished piece in blocks [N, 2] of any size, of exactly its length in total."""
        forecast = Forecast(self._library)
        players = _Players(request, forecast)
        renderer = Renderer(self._library)
        room, rider, limiter = Room(players.dynamics_at(0.0)), GainRider(forecast), Limiter()
        total = round(request.duration_s * SAMPLE_RATE)
        position = -Limiter.DELAY
        while position < total:
            mix = renderer.block(players.strokes_before(renderer.block_end))
            room.follow(players.dynamics_at((position + Limiter.DELAY + BLOCK) / SAMPLE_RATE))
            sound, power = room.process(mix)
            sound = limiter.process(sound * rider.ramp(power))
            block = np.ascontiguousarray(sound[:, max(0, -position) : total - position].T)
            yield block * _fade_out(max(position, 0), len(block), total)[:, None]
            position += BLOCK


@dataclass(frozen=True, slots=True)
class _Foreseen:
    """A phrase as it will be if the plan stays, and the forecast before it."""

    phrase: Phrase
    strokes: list[Stroke]
    before: Forecast


class _Players:
    """Compose and perform a piece; remember the dynamics of what they have played so far.

    The plan is asked for a phrase when it begins. What the loudness forecast needs beyond that is composed as if the
    plan stayed, and thrown away once it has not.
    """

    def __init__(self, request: MusicRequest, forecast: Forecast) -> None:
        self._request = request
        self._forecast = forecast
        self._composition = compose(request.plan, request.seed, request.duration_s)
        self._dynamics: list[tuple[float, str]] = []  # of each phrase, from its start
        self._strokes: deque[Stroke] = deque()  # of the last phrase, those that have not been played
        self._foreseen: deque[_Foreseen] = deque()
        self._forecast_end_s = 0.0
        self._if_it_stays: Composition
        self._take(next(self._composition))

    def strokes_before(self, frame: int) -> Iterator[Stroke]:
        """Yield, in order, the strokes not yet yielded that begin before this frame of the piece."""
        while True:
            if not self._strokes and not self._next_phrase(frame / SAMPLE_RATE):
                return
            while self._strokes:
                if round(self._strokes[0].start_s * SAMPLE_RATE) >= frame:
                    return
                yield self._strokes.popleft()

    def dynamics_at(self, time_s: float) -> str:
        """Return the dynamics of the phrase at `time_s`, which must have begun."""
        return next(dynamics for start_s, dynamics in reversed(self._dynamics) if start_s <= time_s)

    def _next_phrase(self, time_s: float) -> bool:
        """Go on to the next phrase if one begins by `time_s`."""
        if not self._foreseen:
            self._foresee_phrase()
        if self._foreseen:
            self._foresee(self._foreseen[0].strokes)
        if self._composition.start_s - 2 * TIMING_LIMIT_S >= time_s:
            return False
        phrase = next(self._composition, None)
        if phrase is not None:
            self._take(phrase)
        return phrase is not None

    def _take(self, phrase: Phrase) -> None:
        """Play this phrase, which is the one foreseen if the plan has stayed."""
        if self._foreseen and self._foreseen[0].phrase == phrase:
            strokes = self._foreseen.popleft().strokes
            self._dynamics.append((phrase.start_s, phrase.dynamics))
        else:
            if self._foreseen:
                self._forecast.become(self._foreseen[0].before)
                self._foreseen.clear()
            self._dynamics.append((phrase.start_s, phrase.dynamics))
            strokes = self._performed(phrase)
            self._if_it_stays = self._composition.if_it_stays()
            self._foresee(strokes)
        self._strokes.extend(strokes)

    def _foresee(self, strokes: list[Stroke]) -> None:
        """Let the forecast reach as far beyond these strokes as it needs, or to the end."""
        while _start_s(strokes) >= self._forecast_end_s - _HORIZON_S and self._foresee_phrase():
            pass

    def _foresee_phrase(self) -> bool:
        phrase = next(self._if_it_stays, None)
        if phrase is not None:
            before = self._forecast.copy()
            self._foreseen.append(_Foreseen(phrase, self._performed(phrase), before))
        return phrase is not None

    def _performed(self, phrase: Phrase) -> list[Stroke]:
        """Perform a phrase, and add it to the forecast."""
        first = self._dynamics[0][1]
        strokes = perform(phrase, self._request.seed, stroke_gain_db(phrase.dynamics, first))
        end_s = min(phrase.end_s, self._request.duration_s)
        self._forecast.add(strokes, end_s, lift_db(phrase.dynamics, first))
        self._forecast_end_s = phrase.end_s
        return strokes


def _start_s(strokes: list[Stroke]) -> float:
    return strokes[0].start_s if strokes else 0.0


def _fade_out(start: int, length: int, total: int) -> Audio:
    """Return the gain [length] of the frames from `start`: one until the last seconds, then falling to zero."""
    fade = min(round(_FADE_OUT_S * SAMPLE_RATE), int(0.35 * total))
    progress = (np.arange(start, start + length) - (total - fade)) / fade
    return np.cos(np.clip(progress, 0, 1) * (np.pi / 2)).astype(np.float32) ** 2


def _chunks(blocks: Iterator[Audio], chunk: int) -> Generator[Audio, None, None]:
    """Regroup the frames into pieces of `chunk` frames, the last one shorter."""
    waiting: list[Audio] = []
    num_waiting = 0
    for block in blocks:
        waiting.append(block)
        num_waiting += len(block)
        if num_waiting >= chunk:
            frames = np.concatenate(waiting)
            whole = num_waiting - num_waiting % chunk
            yield from np.split(frames[:whole], range(chunk, whole, chunk))
            waiting, num_waiting = [frames[whole:]], num_waiting - whole
    if num_waiting:
        yield np.concatenate(waiting)
