"""EnCodec's decoder in chunks: the concatenation is what decoding the whole would give.

The decoder is a convolution over frames, an LSTM, and convolutions that upsample. The LSTM goes on from its state; the
convolutions see a few frames more on either side than are kept. At the true ends the layers' own padding applies.

It computes in float32 on any device: errors in it are heard, and it is a small part of the time.

Letters: K codebooks, C channels, F frames, N samples, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attune_ensemble.music.musicgen.devices import exact_convolutions

__all__ = ["ChunkedCodec", "CodecStream"]

Audio = npt.NDArray[np.float32]


class ChunkedCodec:
    """The weights, shared by every stream; made from transformers' `EncodecModel`."""

    def __init__(self, model: Any, channels: int, device: str | torch.device | None = None) -> None:
        """Take over `model`, the codec of one channel; stereo music is two of them side by side.

        With `device` it moves there.
        """
        self.channels = channels
        self.sample_rate: int = model.config.sampling_rate
        self.samples_per_frame = int(np.prod(model.config.upsampling_ratios))
        self.frame_rate = self.sample_rate / self.samples_per_frame
        self.quantizer = model.quantizer
        _fold_weight_norm(model.decoder)
        _keep_sizes_on_the_host(model.decoder)
        if device is not None:
            model.to(device)
        first, lstm, *rest = model.decoder.layers
        self.first, self.lstm, self.rest = first, lstm.lstm, nn.ModuleList(rest)
        self.first_context = (int(first.kernel_size) - 1) // 2 + 1
        self.rest_context = _frames_seen(model.config)

    @property
    def lookahead(self) -> int:
        """How many frames have to be known beyond the last one that can be heard."""
        return self.first_context + self.rest_context

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [K, F] to the quantiser's sum [C, W, F]."""
        by_channel = torch.stack([codes[channel :: self.channels] for channel in range(self.channels)], dim=1)
        embedded: Tensor = self.quantizer.decode(by_channel)  # [K / C, C, F] to [C, W, F]
        return embedded

    def upsample(self, hidden: Tensor) -> Tensor:
        """[C, W, F] behind the LSTM to samples [C, F * samples_per_frame]."""
        for layer in self.rest:
            hidden = layer(hidden)
        return hidden.squeeze(1)

    def stream(self) -> CodecStream:
        """A new stream, at its beginning."""
        return CodecStream(self)


class CodecStream:
    """One piece of music: codes in, as they come; samples out, as soon as they are certain."""

    def __init__(self, codec: ChunkedCodec) -> None:
        self._codec = codec
        self._embedded: Tensor | None = None  # [C, W, *], from `_embedded_from` on
        self._embedded_from = 0
        self._hidden: Tensor | None = None  # [C, W, *], behind the LSTM, from `_hidden_from` on
        self._hidden_from = 0
        self._state: Any = None
        self._frames = self._recurrent = self._heard = 0

    def push(self, codes: Tensor, *, final: bool = False) -> Audio:
        """Samples [N, C] that `codes` [K, F] make certain; with `final` everything that is left."""
        audio: Audio = self.advance(codes, final=final).cpu().numpy()
        return audio

    @torch.inference_mode()
    def advance(self, codes: Tensor, *, final: bool = False) -> Tensor:
        """The same, left on the device of `codes`."""
        with exact_convolutions():
            if codes.shape[1]:
                self._embedded = _joined(self._embedded, self._codec.embed(codes))
                self._frames += codes.shape[1]
            self._run_recurrent(final)
            samples = self._run_upsampling(final)  # [C, N] or None
        return torch.zeros(0, self._codec.channels, device=codes.device) if samples is None else samples.T.float()

    def _run_recurrent(self, final: bool) -> None:
        """Take the first convolution and the LSTM as far as they can go."""
        context = self._codec.first_context
        end = self._frames if final else self._frames - context
        if self._embedded is None or end <= self._recurrent:
            return
        convolved = self._codec.first(self._embedded)
        offset = self._embedded_from
        fresh = convolved[:, :, self._recurrent - offset : end - offset].permute(2, 0, 1)  # [F, C, W]
        recurrent, self._state = self._codec.lstm(fresh, self._state)
        self._hidden = _joined(self._hidden, (recurrent + fresh).permute(1, 2, 0))
        self._recurrent = end
        self._embedded, self._embedded_from = _without_past(self._embedded, offset, end - context)

    def _run_upsampling(self, final: bool) -> Tensor | None:
        context = self._codec.rest_context
        end = self._recurrent if final else self._recurrent - context
        if self._hidden is None or end <= self._heard:
            return None
        per_frame, offset = self._codec.samples_per_frame, self._hidden_from
        samples = self._codec.upsample(self._hidden)[:, (self._heard - offset) * per_frame : (end - offset) * per_frame]
        self._heard = end
        self._hidden, self._hidden_from = _without_past(self._hidden, offset, end - context)
        return samples


def _joined(before: Tensor | None, more: Tensor) -> Tensor:
    return more if before is None else torch.cat([before, more], dim=2)


def _without_past(values: Tensor, first: int, needed_from: int) -> tuple[Tensor, int]:
    """Drop what lies before the frame `needed_from` of values [C, W, F] that begin at the frame `first`."""
    needed_from = max(first, needed_from)
    return values[:, :, needed_from - first :], needed_from


def _frames_seen(config: Any) -> int:
    """How many frames on either side a sample behind the LSTM depends on, rounded up."""
    seen, rate = 0.0, 1.0
    for ratio in config.upsampling_ratios:
        seen += 1.0 / rate  # the transposed convolution: twice as long as its stride
        rate *= ratio
        for block in range(config.num_residual_layers):
            dilation = config.dilation_growth_rate**block
            seen += ((config.residual_kernel_size - 1) * dilation / 2 + 1) / rate
    seen += config.last_kernel_size / 2 / rate
    return int(np.ceil(seen))


def _fold_weight_norm(module: nn.Module) -> None:
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight")


def _keep_sizes_on_the_host(module: nn.Module) -> None:
    """Let every convolution's sizes stay on the CPU wherever the weights go.

    Transformers keeps them as buffers and reckons the padding with them: on a GPU each convolution would wait for all
    that is queued, several times.
    """
    for part in module.modules():
        for name in ("stride", "kernel_size", "padding_total"):
            size = part._buffers.pop(name, None)
            if size is not None:
                setattr(part, name, torch.tensor(int(size)))
