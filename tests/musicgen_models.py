"""MusicGen small enough for a test: random weights, transformers' own classes."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BatchEncoding,
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

PAD = 32
FRAME_RATE = 40


class Letters:
    """A tokenizer of letters with the call of transformers' own."""

    def __call__(self, prompt, **_):
        ids = torch.tensor([[3 + ord(letter) % 90 for letter in prompt]])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def tiny_musicgen(channels=1, seed=0, positions=64):
    """A model of 32 tokens, 40 frames a second and 4 samples a frame, whose choices are far apart."""
    torch.manual_seed(seed)
    text = T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    codec = EncodecConfig(
        sampling_rate=160,
        audio_channels=1,
        normalize=False,
        num_filters=4,
        hidden_size=8,
        upsampling_ratios=[2, 2],
        codebook_size=PAD,
        codebook_dim=8,
        use_causal_conv=False,
        use_conv_shortcut=False,
        target_bandwidths=[0.8],
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=PAD,
        max_position_embeddings=positions,
        num_hidden_layers=2,
        ffn_dim=32,
        num_attention_heads=2,
        hidden_size=16,
        num_codebooks=4 * channels,
        audio_channels=channels,
        pad_token_id=PAD,
        bos_token_id=PAD,
        decoder_start_token_id=PAD,
    )
    config = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict())
    model = MusicgenForConditionalGeneration(config).eval()
    for part in (model.decoder, model.text_encoder):
        for parameter in part.parameters():
            parameter.data.normal_(0, 0.3)
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_(0, 1)
    settings = model.generation_config
    settings.pad_token_id = settings.bos_token_id = settings.decoder_start_token_id = PAD
    return model


def save_tiny_musicgen(folder, channels=1, seed=0):
    """Write a checkpoint as transformers does, with a tokenizer of letters; return its model."""
    model = tiny_musicgen(channels, seed)
    model.save_pretrained(folder)
    letters = {letter: index + 3 for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz ,.")}
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2} | letters, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return model


def generated_by_transformers(model, prompts, frames, guidance):
    """Audio [N, C] of each prompt, by transformers' own greedy generate."""
    ids = [Letters()(prompt).input_ids[0] for prompt in prompts]
    longest = max(map(len, ids))
    inputs = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in ids])
    mask = torch.stack([torch.arange(longest) < len(row) for row in ids]).long()
    delay = model.decoder.num_codebooks // model.decoder.config.audio_channels - 1
    audio = model.generate(
        input_ids=inputs.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        guidance_scale=guidance,
        max_new_tokens=frames + delay,
    )
    return [row.T.cpu().numpy().astype(np.float32) for row in audio]
