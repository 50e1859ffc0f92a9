"""A BART of two small layers with random weights, saved as facebook/bart-large-cnn is: for tests of what summarises."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForConditionalGeneration

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# BART-large-CNN's own, but for the lengths, which are the paper's.
GENERATION = {
    "num_beams": 4,
    "min_length": 20,
    "max_length": 150,
    "length_penalty": 2.0,
    "no_repeat_ngram_size": 3,
    "early_stopping": True,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,  # without it `generate` never ends
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "do_sample": False,
}


def save_tiny_bart(folder: Path, texts: Iterable[str], *, spread: float, end_bias: float, seed: int = 0) -> None:
    """Save it with a tokenizer made from `texts`.

    `spread` is that of the weights: a small one makes tokens about equally likely. `end_bias` makes the end likelier.
    """
    folder.mkdir()
    tokenizer = _tokenizer(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(seed)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=tokenizer.get_vocab_size(),
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            d_model=32,
            init_std=spread,
        )
    )
    _make_end_likelier(model, end_bias)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 2} | GENERATION))


def _make_end_likelier(model: BartForConditionalGeneration, bias: float) -> None:
    """Add `bias` to the logit of the end, about.

    By weights: transformers does not load `final_logits_bias` again. The last norm's bias and the end's embedding take
    the same direction, and a decoder's output and embeddings are multiplied.
    """
    end, width = SPECIAL.index("</s>"), model.config.d_model
    with torch.no_grad():
        direction = torch.ones(width) / width**0.5
        last_norm = model.model.decoder.layers[-1].final_layer_norm
        last_norm.bias += bias**0.5 * direction
        model.model.shared.weight[end] += bias**0.5 * direction


def _tokenizer(texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer
