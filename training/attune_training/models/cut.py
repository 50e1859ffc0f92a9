"""Cutting a regressor in two: what lies in front of the cut, and what takes the state at the cut from there.

Each stream is a list of steps, from its input to its projection; behind both lies the place where they are pooled. A
cut names the last step of each stream that is in front. The two parts together give exactly the uncut model's outputs.

Dimensions: B batch, T samples, F frames, L tokens, D hidden size of a tower, d hidden size, K kept tensors, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attune_training.models.regressor import Pooled, Regressor

__all__ = ["Cut", "EveryState", "Head", "SharedEncoder", "Step", "audio_steps", "text_steps"]


class Step(NamedTuple):
    """One step of a stream: its name, and what it makes of the kept tensors [B, *, D] and the attention mask.

    The kept tensors are all that later steps need; they have one width, `width`, behind the step. The first step has no
    function: it starts from the stream's input.
    """

    name: str
    width: int
    run: Callable[[list[Tensor], Tensor], list[Tensor]] | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a regressor is cut: the index of the last step in front of the cut in each stream; None: none is.

    `pooled`: both streams are in front as a whole, with their cross-attention, gates and pooling.
    """

    audio: int | None = None
    text: int | None = None
    pooled: bool = False

    def states(self, model: Regressor) -> dict[str, tuple[str, int]]:
        """Return what crosses the cut, by the names of `Head.forward`: the step that it lies behind, and its width."""
        if self.pooled:
            return {"pooled_state": ("pooling", 2 * model.config.hidden_dim)}
        streams = {
            "audio_state": (self.audio, audio_steps(model), model.audio_tower.mix is not None),
            "text_state": (self.text, text_steps(model), model.config.lower_text_layers),
        }
        return {
            name: (steps[index].name, steps[index].width * _num_kept(steps[index], index, keeps_all))
            for name, (index, steps, keeps_all) in streams.items()
            if index is not None
        }

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in front of it."""
        return self.audio is None and self.text is None and not self.pooled


def audio_steps(model: Regressor) -> list[Step]:
    """Return the steps of the audio stream; their mask is the frames' [B, F]."""
    tower, width = model.audio_tower, model.config.audio.width
    return [
        Step("embedding", width),
        *(Step(f"layer {index + 1}", width, partial(tower.advance, index)) for index in range(len(tower.layers()))),
        Step("tower", width, lambda kept, mask: [tower.finish(kept, mask)]),
        *(
            Step(f"further layer {index + 1}", width, partial(_run_layer, layer))
            for index, layer in enumerate(model.audio_layers)
        ),
        Step("projection", model.config.hidden_dim, lambda kept, _: [model.project_audio(kept[0])]),
    ]


def text_steps(model: Regressor) -> list[Step]:
    """Return the steps of the text stream; their mask is what `TextTower.attention_bias` returns."""
    width = model.config.text.width
    return [
        Step("embedding", width),
        *(
            Step(f"layer {index + 1}", width, partial(_run_text_layer, model, index))
            for index in range(model.config.text.num_layers)
        ),
        Step("projection", model.config.hidden_dim, lambda kept, _: [model.project_text(kept)]),
    ]


def _num_kept(step: Step, index: int, keeps_all: bool) -> int:
    """Return how many tensors are kept behind a step: of a tower that keeps all, the embedding and every layer's."""
    return index + 1 if keeps_all and step.name.startswith("layer") else 1


def _run_layer(layer: nn.Module, kept: list[Tensor], mask: Tensor) -> list[Tensor]:
    return [layer(kept[0], mask)]


def _run_text_layer(model: Regressor, index: int, kept: list[Tensor], bias: Tensor) -> list[Tensor]:
    hidden = model.text_tower.run_layer(index, kept[-1], bias)
    return [*kept, hidden] if model.config.lower_text_layers else [hidden]


def _advance(steps: list[Step], kept: list[Tensor], mask: Tensor, start: int, stop: int) -> list[Tensor]:
    """Return what is kept behind step `stop`, of what is kept behind step `start`."""
    for step in steps[start + 1 : stop + 1]:
        assert step.run is not None
        kept = step.run(kept, mask)
    return kept


class _Part(nn.Module):
    """Base of both parts: a model, where it is cut, and the streams from their inputs or from their states."""

    def __init__(self, model: Regressor, cut: Cut) -> None:
        super().__init__()
        self.model = model
        self.cut = cut
        self._audio, self._text = audio_steps(model), text_steps(model)

    def _start_audio(self, waveform: Tensor, num_samples: Tensor, stop: int) -> Tensor:
        """Return the state [B, F, K * D] of the audio stream behind step `stop`."""
        tower = self.model.audio_tower
        embedded = tower.embed(tower.front_end(waveform, num_samples), num_samples)
        return self._continue_audio(embedded, num_samples, 0, stop)

    def _continue_audio(self, state: Tensor, num_samples: Tensor, start: int, stop: int) -> Tensor:
        mask = self.model.audio_tower.frame_mask(num_samples, state.shape[1])
        return _continue(self._audio, state, mask, start, stop)

    def _start_text(self, input_ids: Tensor, attention_mask: Tensor | None, stop: int) -> Tensor:
        """Return the state [B, L, K * D] of the text stream behind step `stop`; without layers, without a mask."""
        embedded = self.model.text_tower.embed(input_ids)
        if stop == 0:
            return embedded
        assert attention_mask is not None
        return self._continue_text(embedded, attention_mask, 0, stop)

    def _continue_text(self, state: Tensor, attention_mask: Tensor, start: int, stop: int) -> Tensor:
        bias = self.model.text_tower.attention_bias(attention_mask)
        return _continue(self._text, state, bias, start, stop)


def _continue(steps: list[Step], state: Tensor, mask: Tensor, start: int, stop: int) -> Tensor:
    kept = list(state.split(steps[start].width, dim=-1))
    return torch.cat(_advance(steps, kept, mask, start, stop), dim=-1)


class SharedEncoder(_Part):
    """The part in front of the cut: from the inputs to the states."""

    def forward(
        self,
        waveform: Tensor | None = None,
        num_samples: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the states, those that there are of audio [B, F, K * D] and text [B, L, K * D], or pooled [B, 2d].

        The inputs are those of `EmotionModel.forward`, as many as the states are made of.
        """
        cut = self.cut
        if cut.pooled:
            return (_pooled(self.model, waveform, num_samples, input_ids, attention_mask),)
        states = []
        if cut.audio is not None:
            assert waveform is not None
            assert num_samples is not None
            states.append(self._start_audio(waveform, num_samples, cut.audio))
        if cut.text is not None:
            assert input_ids is not None
            states.append(self._start_text(input_ids, attention_mask, cut.text))
        return tuple(states)


def _pooled(model: Regressor, waveform: Tensor | None, num_samples: Tensor | None, *words: Tensor | None) -> Tensor:
    features, frame_mask = model.audio_tower(waveform, num_samples)
    return torch.cat(model.pool(features, frame_mask, *words), dim=-1)  # type: ignore[arg-type]


class Head(_Part):
    """The part behind the cut: from the states, and the inputs of a stream that is not cut, to the predictions."""

    def forward(
        self,
        waveform: Tensor | None = None,
        num_samples: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_state: Tensor | None = None,
        text_state: Tensor | None = None,
        pooled_state: Tensor | None = None,
    ) -> Tensor:
        """Return [B, N] in 1..5, as the uncut model does, of the states that `SharedEncoder.forward` returns."""
        if pooled_state is not None:
            audio, text = pooled_state.chunk(2, dim=-1)
            return self.model.regress(Pooled(audio, text))
        assert num_samples is not None
        assert attention_mask is not None
        voice, words = (
            self._behind_audio(waveform, num_samples, audio_state),
            self._behind_text(input_ids, attention_mask, text_state),
        )
        frame_mask = self.model.audio_tower.frame_mask(num_samples, voice.shape[1])
        return self.model.regress(self.model.join(voice, words, frame_mask, attention_mask > 0))

    def _behind_audio(self, waveform: Tensor | None, num_samples: Tensor, state: Tensor | None) -> Tensor:
        last = len(self._audio) - 1
        if state is None:
            assert waveform is not None
            return self._start_audio(waveform, num_samples, last)
        assert self.cut.audio is not None
        return self._continue_audio(state, num_samples, self.cut.audio, last)

    def _behind_text(self, input_ids: Tensor | None, attention_mask: Tensor, state: Tensor | None) -> Tensor:
        last = len(self._text) - 1
        if state is None:
            assert input_ids is not None
            return self._start_text(input_ids, attention_mask, last)
        assert self.cut.text is not None
        return self._continue_text(state, attention_mask, self.cut.text, last)


class EveryState(_Part):
    """A model that returns its state behind every step, so that two of them can be compared."""

    def forward(
        self, waveform: Tensor, num_samples: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the audio stream's states, the text stream's, each in the order of the steps, and the pooled state."""
        audio, text = [self._start_audio(waveform, num_samples, 0)], [self._start_text(input_ids, attention_mask, 0)]
        for index in range(1, len(self._audio)):
            audio.append(self._continue_audio(audio[-1], num_samples, index - 1, index))
        for index in range(1, len(self._text)):
            text.append(self._continue_text(text[-1], attention_mask, index - 1, index))
        frame_mask = self.model.audio_tower.frame_mask(num_samples, audio[-1].shape[1])
        return audio, text, torch.cat(self.model.join(audio[-1], text[-1], frame_mask, attention_mask > 0), dim=-1)
