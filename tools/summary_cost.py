"""Cost of one BART summary on a CPU: the table of ensemble/benchmarks/README.md.

    python -m tools.summary_cost

The weights are random, in the shape of facebook/bart-large-cnn: a step of the search takes as long whatever they are.
How long a summary gets depends on them, so both ends are measured: where none ends by itself (150 tokens), and where
all end as soon as they may (20 tokens, or a few more, because the search goes on until four have ended).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForConditionalGeneration
from transformers.utils import logging

from attune_client.bench.report import Row, hardware_line, markdown_table
from attune_ensemble.call import UNLIMITED
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.prompting.summarising import BartSummariser
from attune_export.summariser import convert_bart

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
VOCABULARY = 50_264
MERGED = 2_000  # tokens that the text is cut into: about as many a word as BART's own make
END_BIAS = 400.0  # added to the logit of the end; all others lie within a few of each other
WORDS = 200
LENGTHS = {"as long as it may be": 0.0, "as short as it may be": END_BIAS}


def text_of(words: int) -> str:
    """Return so many words of the knowledge base's descriptions."""
    return " ".join(" ".join(emotion.description for emotion in load_emotions()).split()[:words])


def tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer in the format of BART's, with as many tokens, most of them unused."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=MERGED, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    made.train_from_iterator((emotion.description for emotion in load_emotions()), trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    made.add_tokens([AddedToken(f"<unused-{index}>") for index in range(VOCABULARY - made.get_vocab_size())])
    return made


def save_random_bart(folder: Path, end_bias: float) -> None:
    """Save random weights of BART-large-CNN's shape, whose end has a logit higher by `end_bias`, about."""
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY))
    embeddings = model.model.shared.weight  # [V, D]
    direction = torch.ones(embeddings.shape[1]) / embeddings.shape[1] ** 0.5
    with torch.no_grad():
        model.model.decoder.layers[-1].final_layer_norm.bias += end_bias**0.5 * direction
        embeddings[SPECIAL.index("</s>")] += end_bias**0.5 * direction
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))


def measure(folder: Path, compute_type: str, threads: int, repeats: int, name: str) -> Row:
    """Return the times of one summary after another, the first of which is not counted."""
    summariser = BartSummariser(folder, "cpu", compute_type, threads)
    text, times_s = text_of(WORDS), []
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).tokens
    length = len(summariser.generate(tokens, context=UNLIMITED))
    for _ in range(repeats):
        started_s = time.perf_counter()
        summariser.summarise(text, context=UNLIMITED)
        times_s.append(time.perf_counter() - started_s)
    summariser.close()
    return Row(f"{compute_type}, {name}", tuple(times_s), note=f"{len(tokens)} tokens read, {length} written")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compute-type", nargs="+", default=["int8", "float32"])
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    rows = []
    with tempfile.TemporaryDirectory(prefix="attune-summary-cost-") as place:
        source, converted = Path(place, "source"), Path(place, "converted")
        for name, end_bias in LENGTHS.items():
            save_random_bart(source, end_bias)
            convert_bart(source, converted)
            shutil.rmtree(source)
            for kind in arguments.compute_type:
                rows.append(measure(converted, kind, arguments.threads, arguments.repeats, name))
            shutil.rmtree(converted)
    print(f"{hardware_line()}; {arguments.threads} threads\n\n{markdown_table(rows)}")


if __name__ == "__main__":
    main()
