"""From a checkpoint to an engine: transformers' MusicGen, or one of its sizes with random weights.

Speed does not depend on the values of the weights, so a benchmark needs no download.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from attune_client.protocol.errors import AttuneError
from attune_ensemble.music.musicgen.codec import ChunkedCodec
from attune_ensemble.music.musicgen.conditioning import Conditioner
from attune_ensemble.music.musicgen.decoder import Decoder
from attune_ensemble.music.musicgen.engine import MusicGenEngine
from attune_ensemble.music.musicgen.linear import Int8Linear, OneDnnLinear, is_int8_available
from attune_ensemble.music.musicgen.settings import EngineSettings

__all__ = [
    "SIZES",
    "TINY",
    "CheckpointError",
    "Numerics",
    "Parts",
    "as_served",
    "engine_of",
    "load_checkpoint",
    "numerics_on",
    "parts_of",
    "random_checkpoint",
]

Numerics = Literal["float32", "bfloat16", "float16", "int8"]
"""Numbers of the decoder: `int8` is float32 with 8-bit weights and inputs in the linear layers."""

_ON_DEVICE: dict[str, tuple[Numerics, ...]] = {
    "cpu": ("int8", "float32", "bfloat16"),
    "cuda": ("bfloat16", "float16", "float32"),
}
"""What a kind of device offers, its usual numerics first."""

_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}


class CheckpointError(AttuneError):
    """There is no MusicGen checkpoint where one was looked for."""


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of a published model's decoder; all are conditioned on T5 base."""

    layers: int
    width: int
    heads: int


SIZES = {"small": Size(24, 1024, 16), "medium": Size(48, 1536, 24), "large": Size(48, 2048, 32)}
"""The sizes that are published (Copet et al. 2023); the stereo variants have the same decoders with 8 codebooks."""


TINY = "tiny"
"""A shape that nobody published, for rehearsals: everything is there and costs next to nothing."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of."""

    decoder: Decoder
    codec: ChunkedCodec
    conditioner: Conditioner


def load_checkpoint(folder: Path) -> tuple[Any, Any]:
    """Transformers' model and tokenizer from a local folder.

    Raises:
        CheckpointError: the folder holds no MusicGen, or its weights are no finite numbers.
    """
    try:
        model = MusicgenForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no MusicGen checkpoint: {error}") from error
    for name, weight in model.state_dict().items():
        # Sampling would make tokens of anything, and noise would pass for music.
        if not torch.isfinite(weight).all():
            raise CheckpointError(f"{folder} holds weights that are no finite numbers: {name}")
    return model.eval(), tokenizer


def random_checkpoint(size: str, *, stereo: bool = False, device: str = "cpu") -> Any:
    """Transformers' model of a published size, or `TINY`, with random weights, made on `device`.

    Raises:
        CheckpointError: there is no such size.
    """
    if size not in SIZES and size != TINY:
        raise CheckpointError(f"MusicGen has no size {size!r}; choose from {', '.join(SIZES)}")
    tiny, channels = size == TINY, 2 if stereo else 1
    shape = Size(2, 64, 2) if tiny else SIZES[size]
    text = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=1 if tiny else 12, num_heads=12)
    codec = EncodecConfig(
        sampling_rate=32_000,
        audio_channels=1,
        normalize=False,
        num_filters=4 if tiny else 64,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        codebook_dim=128,
        hidden_size=128,
        use_causal_conv=False,
        use_conv_shortcut=False,
        target_bandwidths=[2.2],
    )
    decoder = MusicgenDecoderConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        ffn_dim=4 * shape.width,
        num_attention_heads=shape.heads,
        num_codebooks=4 * channels,
        audio_channels=channels,
    )
    config = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict())
    with torch.device(device):
        return MusicgenForConditionalGeneration(config).eval()


def numerics_on(device: str, name: str = "") -> Numerics:
    """The numerics of that name on a device such as `cpu` or `cuda:1`; without a name the device's usual ones.

    Raises:
        CheckpointError: the device offers none of that name.
    """
    offered = _ON_DEVICE.get(device.partition(":")[0], _ON_DEVICE["cuda"])
    for numerics in offered:
        if name in ("", numerics):
            return numerics
    raise CheckpointError(f"numerics must be one of {', '.join(offered)} on {device}; got {name!r}")


def parts_of(model: Any, tokenizer: Any, *, numerics: Numerics, device: str, max_prompt_tokens: int = 256) -> Parts:
    """The engine's parts on the device, made of transformers' model, which is used up: its weights move.

    Raises:
        CheckpointError: as `numerics_on` does.
    """
    numerics = numerics_on(device, numerics)
    channels = model.decoder.config.audio_channels
    decoder = Decoder(model.decoder.to(device, _DTYPES[numerics]))
    if device == "cpu":
        decoder = as_served(decoder, numerics)
    else:
        decoder.fold_norms()
    projection = getattr(model, "enc_to_dec_proj", None)
    encoder = model.text_encoder.to(device, torch.float32)
    if projection is not None:
        projection = projection.to(device, torch.float32)
    conditioner = Conditioner(encoder, projection, tokenizer, max_tokens=max_prompt_tokens, dtype=_DTYPES[numerics])
    return Parts(decoder, ChunkedCodec(model.audio_encoder.float(), channels, device), conditioner)


def engine_of(parts: Parts, settings: EngineSettings) -> MusicGenEngine:
    """A running engine."""
    return MusicGenEngine(parts.decoder, parts.codec, parts.conditioner, settings)


def as_served(decoder: Decoder, numerics: Numerics) -> Decoder:
    """The decoder with the linear layers that it has on a CPU; its dtype stays.

    Raises:
        CheckpointError: this build of PyTorch has no kernels for int8.
    """
    if numerics == "int8":
        if not is_int8_available():
            raise CheckpointError("int8 numerics need PyTorch's kernels for x86: choose float32 or bfloat16 here")
        _replace_linear(decoder, Int8Linear)
    elif torch.backends.mkldnn.is_available():
        _replace_linear(decoder, OneDnnLinear)
    return decoder


def _replace_linear(module: nn.Module, kind: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, kind(child))
        else:
            _replace_linear(child, kind)
