"""From a checkpoint to an engine: transformers' MusicGen, or one of its sizes with random weights.

Speed does not depend on the values of the weights, so a benchmark needs no download.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.utils import mkldnn
from transformers import (
    AutoTokenizer,
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from attune_client.protocol.errors import AttuneError
from attune_ensemble.musicgen.codec import ChunkedCodec
from attune_ensemble.musicgen.conditioning import Conditioner
from attune_ensemble.musicgen.decoder import Decoder
from attune_ensemble.musicgen.engine import EngineSettings, MusicGenEngine

__all__ = [
    "SIZES",
    "TINY",
    "CheckpointError",
    "Numerics",
    "Parts",
    "engine_of",
    "load_checkpoint",
    "numerics_on",
    "parts_of",
    "random_checkpoint",
]

Numerics = Literal["float32", "bfloat16", "float16", "int8"]
"""Numbers of the decoder: `int8` is float32 with 8-bit weights in the linear layers, on a CPU alone."""

_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}


_USUAL: dict[str, Numerics] = {"cpu": "int8", "cuda": "bfloat16"}


class CheckpointError(AttuneError):
    """There is no MusicGen checkpoint where one was looked for."""


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of a published model's decoder; all of them hear T5 base."""

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
        CheckpointError: the folder holds no MusicGen.
    """
    try:
        model = MusicgenForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no MusicGen checkpoint: {error}") from error
    return model.eval(), tokenizer


def numerics_on(device: str, asked: str = "") -> Numerics:
    """The numerics that are asked for, or those that are usual on the device, of which `cuda:1` may be one.

    Raises:
        CheckpointError: there are none of that name, or int8 is asked for on a GPU.
    """
    kind = torch.device(device).type
    if asked and asked not in _DTYPES:
        raise CheckpointError(f"MusicGen has no numerics {asked!r}; choose from {', '.join(_DTYPES)}")
    if asked == "int8" and kind != "cpu":
        raise CheckpointError("int8 numerics are for a CPU: choose bfloat16 or float16 on a GPU")
    return cast(Numerics, asked) if asked else _USUAL[kind]


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


def parts_of(model: Any, tokenizer: Any, *, numerics: Numerics, device: str, max_prompt_tokens: int = 256) -> Parts:
    """The engine's parts on the device, made of transformers' model, which is used up: its weights move.

    Raises:
        CheckpointError: as `numerics_on` does.
    """
    numerics = numerics_on(device, numerics)
    channels = model.decoder.config.audio_channels
    decoder = Decoder(model.decoder.to(device, _DTYPES[numerics]))
    if numerics == "int8":
        quantise(decoder)
    elif device == "cpu" and torch.backends.mkldnn.is_available():
        # PyTorch's own linear layers read the weights at a third of the speed of oneDNN's where there are few rows.
        decoder = mkldnn.to_mkldnn(decoder, _DTYPES[numerics])
    projection = getattr(model, "enc_to_dec_proj", None)
    encoder = model.text_encoder.to(device, torch.float32)
    if projection is not None:
        projection = projection.to(device, torch.float32)
    conditioner = Conditioner(encoder, projection, tokenizer, max_tokens=max_prompt_tokens, dtype=_DTYPES[numerics])
    return Parts(decoder, ChunkedCodec(model.audio_encoder.float(), channels, device), conditioner)


def engine_of(parts: Parts, settings: EngineSettings) -> MusicGenEngine:
    """A running engine."""
    return MusicGenEngine(parts.decoder, parts.codec, parts.conditioner, settings)


def quantise(decoder: nn.Module) -> None:
    """Replace every linear layer by one with 8-bit weights, a scale for each output; inputs as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a successor in another package, which this one does not need
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        quantize_dynamic(decoder, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
