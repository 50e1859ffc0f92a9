"""The pretrained towers: HuBERT or Whisper's encoder for audio, BERT or MPNet for text.

Both audio towers have one interface: waveforms with their true lengths in, features with a padding mask out. Features
do not depend on padding: samples beyond the true length are set to zero first, statistics over time are taken over
real samples alone, and every layer that mixes positions is masked. A clip has the same features alone, padded, or
batched with a longer one.

Dimensions: B batch, T samples, F frames, C input channels, D hidden size of the tower, L tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import BertConfig, BertModel, HubertConfig, HubertModel, MPNetModel, WhisperConfig
from transformers.audio_utils import mel_filter_bank
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.hubert.modeling_hubert import HubertGroupNormConvLayer
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging as transformers_logging

from attune_training.config import SAMPLE_RATE, AudioTowerConfig, TextTowerConfig
from attune_training.models.layers import attend, length_mask
from attune_training.models.mpnet import MpnetEncoder, mpnet_config
from attune_training.models.whisper_weights import read_whisper_encoder

__all__ = [
    "MIN_SAMPLES",
    "AudioTower",
    "HubertTower",
    "LayerMix",
    "LogMel",
    "TextTower",
    "WhisperTower",
    "build_audio_tower",
]

MIN_SAMPLES = 400
"""Shortest waveform tensor, in samples: one analysis window of either tower. Shorter clips are zero-padded to it."""


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa` does, with boolean masks and exportable, and in the faster dtype on a CPU."""
    return attend(partial(sdpa_attention_forward, module), query, key, value, attention_mask=attention_mask, **options)


AttentionInterface.register("attune", _attention)
AttentionMaskInterface.register("attune", sdpa_mask)
_ATTENTION: dict[str, Any] = {"attn_implementation": "attune"}


class LayerMix(nn.Module):
    """A learned softmax-weighted sum of the layers' outputs, each normalised to unit variance first.

    Emotion is encoded mostly in the middle layers, and the layers' scales differ by orders of magnitude.
    """

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """Mix `num_outputs` tensors [B, F, D] to one."""
        width = outputs[0].shape[-1]
        # The weight is the layer norm's scale, so that neither the stack of layers nor a weighted copy is allocated.
        scales = self.weights.softmax(dim=0)[:, None].expand(-1, width)  # [N, D]
        return reduce(
            torch.add,
            (functional.layer_norm(output, (width,), scale) for output, scale in zip(outputs, scales, strict=True)),
        )


class AudioTower(nn.Module, ABC):
    """Frozen speech encoder: a front end without adapters, then transformer layers with LoRA adapters."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.mix = LayerMix(config.num_layers + 1) if config.layer_mix else None

    @abstractmethod
    def front_end(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Return the input features [B, C, M] of waveform [B, T]; the front end has no trainable parameters."""

    @abstractmethod
    def embed(self, inputs: Tensor, num_samples: Tensor) -> Tensor:
        """Return what the first layer takes, [B, F, D], of the front end's output; it has no adapters either."""

    @abstractmethod
    def frame_mask(self, num_samples: Tensor, num_frames: int) -> Tensor:
        """Return the mask [B, F] of the real frames, at least one in each row, of F = num_frames."""

    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """Return the transformer's layers."""

    @abstractmethod
    def adapted_module(self) -> nn.Module:
        """Return the transformer that LoRA adapts."""

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Encode speech.

        Args:
            waveform: [B, T] float32, 16 kHz mono, T in MIN_SAMPLES..max_samples.
            num_samples: [B, 1] int64, true lengths.

        Returns:
            features [B, F, D] and frame_mask [B, F] (boolean, at least one frame in each row).

        Raises:
            ValueError: T is out of range.
        """
        self._check(waveform)
        return self.encode(self.front_end(waveform, num_samples), num_samples)

    def _check(self, waveform: Tensor) -> None:
        size = waveform.shape[1]
        if size < MIN_SAMPLES or size > self.config.max_samples:
            raise ValueError(f"waveform has {size} samples; it must have {MIN_SAMPLES} to {self.config.max_samples}")

    def encode(self, inputs: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, F, D] and frame_mask [B, F] of the front end's output."""
        outputs = [self.embed(inputs, num_samples)]
        frame_mask = self.frame_mask(num_samples, outputs[0].shape[1])
        for index in range(len(self.layers())):
            outputs = self.advance(index, outputs, frame_mask)
        return self.finish(outputs, frame_mask), frame_mask

    def advance(self, index: int, outputs: list[Tensor], frame_mask: Tensor) -> list[Tensor]:
        """Run one layer on the last of the outputs [B, F, D]; return those that are needed behind it.

        They are the embedding and every layer's output with a layer mix, and the last output alone without one.
        """
        hidden = self.layers()[index](outputs[-1], attention_mask=frame_mask[:, None, None, :])
        return [hidden] if self.mix is None else [*outputs, hidden]

    def finish(self, outputs: list[Tensor], frame_mask: Tensor) -> Tensor:
        """Return the tower's features [B, F, D], zero in the padding, of what the last layer left."""
        features = self.final_norm(outputs[-1]) if self.mix is None else self.mix(outputs)
        return features * frame_mask.unsqueeze(-1).to(features.dtype)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return the last layer's output as the published model gives it."""
        return hidden


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram as convolutions, so that it is part of the exported graph.

    Window 25 ms (Hann), hop 10 ms, power spectrum, Slaney mel bands, log10, clipped to 8 below the clip's own
    maximum, then (x + 4) / 4. The left edge is padded by reflection as in Whisper, the right one with zeros,
    as Whisper pads every clip shorter than 30 s.
    """

    WINDOW = 400
    HOP = 160
    kernel: Tensor
    filters: Tensor

    def __init__(self, num_mels: int) -> None:
        super().__init__()
        filters = mel_filter_bank(
            num_frequency_bins=1 + self.WINDOW // 2,
            num_mel_filters=num_mels,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )  # [bins, mels]
        self.register_buffer("kernel", self._fourier_kernel(), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters.T).float(), persistent=False)  # [mels, bins]

    @classmethod
    def _fourier_kernel(cls) -> Tensor:
        """Return [2 * bins, 1, window]: windowed cosines, then windowed sines."""
        time = torch.arange(cls.WINDOW, dtype=torch.float64)
        bins = torch.arange(1 + cls.WINDOW // 2, dtype=torch.float64)
        angle = 2 * math.pi * bins[:, None] * time[None, :] / cls.WINDOW
        window = torch.hann_window(cls.WINDOW, dtype=torch.float64)
        return (torch.cat([angle.cos(), angle.sin()]) * window).float().unsqueeze(1)

    @classmethod
    def num_frames(cls, num_samples: Tensor) -> Tensor:
        """Return the number of real frames [B, 1] of clips of `num_samples` [B, 1], at least one."""
        return ((num_samples + cls.HOP - 1) // cls.HOP).clamp(min=1)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Return [B, mels, ceil(T / hop)] of waveform [B, T], zero beyond each clip's real frames."""
        half = self.WINDOW // 2
        left = waveform[:, 1 : half + 1].flip(1)
        # half - 1 zeros give exactly ceil(T / hop) frames.
        padded = functional.pad(torch.cat([left, waveform], dim=1), (0, half - 1)).unsqueeze(1)
        spectrum = functional.conv1d(padded, self.kernel, stride=self.HOP)  # [B, 2 * bins, M]
        cosine, sine = spectrum.square().chunk(2, dim=1)
        mel = torch.matmul(self.filters, cosine + sine)  # [B, mels, M]
        log_mel = mel.clamp(min=1e-10).log10()
        mask = length_mask(self.num_frames(num_samples), log_mel.shape[2]).unsqueeze(1)  # [B, 1, M]
        loudest = log_mel.masked_fill(~mask, float("-inf")).amax(dim=(1, 2), keepdim=True)
        scaled = (torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0
        return scaled.masked_fill(~mask, 0.0)


class WhisperTower(AudioTower):
    """Whisper's encoder over the clip's own length, without padding to 30 s.

    Position embeddings are truncated to the length in use. Frames beyond the clip are set to zero after each
    convolution and masked in self-attention.
    """

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__(config)
        self.log_mel = LogMel(config.num_mels)
        self.encoder = WhisperEncoder(
            WhisperConfig(
                num_mel_bins=config.num_mels,
                d_model=config.width,
                encoder_layers=config.num_layers,
                encoder_attention_heads=config.num_heads,
                encoder_ffn_dim=config.feedforward,
                max_source_positions=-(-config.max_samples // (2 * LogMel.HOP)),
                **_ATTENTION,
            )
        )

    def front_end(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Return the log-mel spectrogram [B, mels, M]."""
        return self.log_mel(waveform * length_mask(num_samples, waveform.shape[1]), num_samples)

    def embed(self, inputs: Tensor, num_samples: Tensor) -> Tensor:
        """Return the convolutions' output with positions, [B, F, D] at 50 frames a second."""
        num_frames = LogMel.num_frames(num_samples)
        mel_mask = length_mask(num_frames, inputs.shape[2]).unsqueeze(1)  # [B, 1, M]
        hidden = functional.gelu(self.encoder.conv1(inputs)) * mel_mask
        hidden = functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)  # [B, F, D]
        frame_mask = self.frame_mask(num_samples, hidden.shape[1])
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        return hidden * frame_mask.unsqueeze(-1)

    def frame_mask(self, num_samples: Tensor, num_frames: int) -> Tensor:
        """Return the mask [B, F] of the real frames."""
        return length_mask((LogMel.num_frames(num_samples) + 1) // 2, num_frames)

    def layers(self) -> nn.ModuleList:
        """Return the encoder's layers."""
        return self.encoder.layers

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return the last layer's output after the encoder's layer norm."""
        normed: Tensor = self.encoder.layer_norm(hidden)
        return normed

    def adapted_module(self) -> nn.Module:
        """Return Whisper's encoder."""
        return self.encoder

    def load(self, path: Path) -> None:
        """Load the encoder of a published Whisper, its position embeddings truncated to the tower's length.

        Raises:
            ValueError: the path holds no Whisper, or its shape is not the configured one.
        """
        state = read_whisper_encoder(path)
        positions = state["embed_positions.weight"]
        state["embed_positions.weight"] = positions[: self.encoder.config.max_source_positions]
        _load_strictly(self.encoder, state, path)


class HubertTower(AudioTower):
    """HuBERT with a length-aware first group norm.

    HuBERT-base's first layer has a group norm over time whose statistics, as published, include the padding.
    """

    KERNELS = (10, 3, 3, 3, 3, 2, 2)
    STRIDES = (5, 2, 2, 2, 2, 2, 2)

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__(config)
        self.encoder = _without_weight_norm(HubertModel(_hubert_config(config)))

    def front_end(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Return the convolutional features [B, C, F] of the clip at zero mean and unit variance."""
        hidden = _standardised(waveform, num_samples).unsqueeze(1)  # [B, 1, T]
        lengths = num_samples
        for layer, kernel, stride in zip(
            self.encoder.feature_extractor.conv_layers, self.KERNELS, self.STRIDES, strict=True
        ):
            lengths = _conv_length(lengths, kernel, stride)
            if isinstance(layer, HubertGroupNormConvLayer):
                hidden = layer.activation(_masked_channel_norm(layer.conv(hidden), lengths, layer.layer_norm))
            else:
                hidden = layer(hidden)
        return hidden

    def embed(self, inputs: Tensor, num_samples: Tensor) -> Tensor:
        """Return the projected features with positions, [B, F, D] at 49 frames a second."""
        frame_mask = self.frame_mask(num_samples, inputs.shape[2])
        hidden = self.encoder.feature_projection(inputs.transpose(1, 2)) * frame_mask.unsqueeze(-1)  # [B, F, D]
        encoder = self.encoder.encoder
        embedded: Tensor = encoder.dropout(encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden)))
        return embedded

    def frame_mask(self, num_samples: Tensor, num_frames: int) -> Tensor:
        """Return the mask [B, F] of the real frames."""
        lengths = num_samples
        for kernel, stride in zip(self.KERNELS, self.STRIDES, strict=True):
            lengths = _conv_length(lengths, kernel, stride)
        return length_mask(lengths, num_frames)

    def layers(self) -> nn.ModuleList:
        """Return the transformer's layers."""
        return self.encoder.encoder.layers

    def adapted_module(self) -> nn.Module:
        """Return HuBERT's transformer."""
        return self.encoder.encoder

    def load(self, path: Path) -> None:
        """Load a folder of transformers' HuBERT.

        Raises:
            ValueError: the folder holds no HuBERT of the configured shape.
        """
        loaded = _from_folder(HubertModel, _hubert_config(self.config), path)
        _load_strictly(self.encoder, _without_weight_norm(loaded).state_dict(), path)


def _without_weight_norm(model: HubertModel) -> HubertModel:
    """Fold the position convolution's weight norm: it is frozen, and copies of a parametrized layer share a class."""
    parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
    return model


def _hubert_config(config: AudioTowerConfig) -> HubertConfig:
    return HubertConfig(
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.feedforward,
        conv_dim=(config.conv_channels,) * len(HubertTower.KERNELS),
        conv_kernel=HubertTower.KERNELS,
        conv_stride=HubertTower.STRIDES,
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        # Without masking there is no mask embedding, an unused weight.
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        **_ATTENTION,
    )


def _conv_length(lengths: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the output length of an unpadded convolution, at least one."""
    return (torch.div(lengths - kernel, stride, rounding_mode="floor") + 1).clamp(min=1)


def _standardised(waveform: Tensor, num_samples: Tensor) -> Tensor:
    """Normalise the real samples of waveform [B, T] to zero mean and unit variance; set all others to zero."""
    mask = length_mask(num_samples, waveform.shape[1])
    count = num_samples.clamp(min=1).to(waveform.dtype)  # [B, 1]
    real = waveform.masked_fill(~mask, 0.0)
    centred = (real - real.sum(dim=1, keepdim=True) / count).masked_fill(~mask, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / count
    return centred / torch.sqrt(variance + 1e-7)


def _masked_channel_norm(hidden: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Apply `norm`, one group per channel, to hidden [B, C, F] with statistics over the real frames alone."""
    mask = length_mask(lengths, hidden.shape[2]).unsqueeze(1)  # [B, 1, F]
    count = lengths.to(hidden.dtype).unsqueeze(-1)  # [B, 1, 1]
    mean = hidden.masked_fill(~mask, 0.0).sum(dim=2, keepdim=True) / count
    centred = hidden - mean
    variance = centred.masked_fill(~mask, 0.0).square().sum(dim=2, keepdim=True) / count
    return centred * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]


_AUDIO_TOWERS: dict[str, type[WhisperTower] | type[HubertTower]] = {"whisper": WhisperTower, "hubert": HubertTower}


def build_audio_tower(config: AudioTowerConfig, path: Path | None) -> AudioTower:
    """Return the configured tower, frozen except for its layer mix; `path` None: random weights.

    Raises:
        ValueError: the kind is unknown, or the weights do not fit.
    """
    if config.kind not in _AUDIO_TOWERS:
        raise ValueError(f"audio tower {config.kind!r} is unknown; choose from {', '.join(_AUDIO_TOWERS)}")
    tower = _AUDIO_TOWERS[config.kind](config)
    if path is not None:
        tower.load(path)
    tower.encoder.requires_grad_(False)
    return tower


class TextTower(nn.Module):
    """BERT or MPNet without its pooler; `encoder` is the transformers model, and what LoRA adapts."""

    def __init__(self, config: TextTowerConfig, path: Path | None) -> None:
        """Build the tower, frozen; `path` None: random weights.

        Raises:
            ValueError: the kind is unknown, or the folder holds no model of this kind and the configured shape.
        """
        super().__init__()
        self.config = config
        if config.kind not in _TEXT_ENCODERS:
            raise ValueError(f"text tower {config.kind!r} is unknown; choose from {', '.join(_TEXT_ENCODERS)}")
        kind, shape, build = _TEXT_ENCODERS[config.kind]
        self.encoder = build(shape(config))
        if path is not None:
            loaded = _from_folder(kind, shape(config), path, add_pooling_layer=False)
            _load_strictly(self.encoder, loaded.state_dict(), path)
        self.encoder.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return features [B, L, D] of input_ids and attention_mask [B, L], both int64."""
        return self.layers(input_ids, attention_mask)[-1]

    def layers(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """Return the embeddings and every layer's output, each [B, L, D]; the last one is the tower's features.

        The text begins in the first column; which token lies in the padding after it has no effect on real tokens.
        """
        outputs, bias = [self.embed(input_ids)], self.attention_bias(attention_mask)
        for index in range(self.config.num_layers):
            outputs.append(self.run_layer(index, outputs[-1], bias))
        return outputs

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [B, L, D] of input_ids [B, L]; they have no adapters."""
        if isinstance(self.encoder, MpnetEncoder):
            return self.encoder.embed(input_ids)
        bert: Any = self.encoder
        embedded: Tensor = bert.embeddings(input_ids=input_ids)
        return embedded

    def attention_bias(self, attention_mask: Tensor) -> Tensor:
        """Return what every layer takes of attention_mask [B, L]: the mask, with MPNet's bias of relative positions."""
        if isinstance(self.encoder, MpnetEncoder):
            return self.encoder.attention_bias(attention_mask)
        return attention_mask[:, None, None, :] > 0

    def run_layer(self, index: int, hidden: Tensor, bias: Tensor) -> Tensor:
        """Run one layer on hidden [B, L, D], with what `attention_bias` returned."""
        layer: Any = self.encoder.encoder.layer[index]  # type: ignore[union-attr, index]
        output: Tensor = (
            layer(hidden, position_bias=bias)[0] if isinstance(self.encoder, MpnetEncoder) else layer(hidden, bias)
        )
        return output


def _bert_config(config: TextTowerConfig) -> BertConfig:
    return BertConfig(
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.feedforward,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_tokens,
        attention_probs_dropout_prob=0.0,
        **_ATTENTION,
    )


# For each kind: the published model, its configuration, and the encoder that holds the same weights.
_TEXT_ENCODERS: dict[str, tuple[type, Callable[[TextTowerConfig], Any], Callable[[Any], nn.Module]]] = {
    "bert": (BertModel, _bert_config, partial(BertModel, add_pooling_layer=False)),
    "mpnet": (MPNetModel, mpnet_config, MpnetEncoder),
}


def _from_folder(kind: Any, config: Any, path: Path, **options: Any) -> Any:
    """Load a transformers model from a local folder; no weight of the configured shape may be missing."""
    if not Path(path).is_dir():
        raise ValueError(f"{path} is not a folder; a folder of transformers' {kind.__name__} was expected")
    try:
        with _quiet_transformers():
            model, report = kind.from_pretrained(
                path, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32, **options
            )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: no {kind.__name__} of the configured shape: {error}") from error
    if report["missing_keys"]:
        raise ValueError(f"{path}: weights are missing for {', '.join(sorted(report['missing_keys']))}")
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress the progress bar and the report of weights (such as the pooler's) that are skipped on purpose."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _load_strictly(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold weights of the configured shape: {error}") from error
