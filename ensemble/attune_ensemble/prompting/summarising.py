"""BART summaries through CTranslate2 (paper, section III-F): at most 150 tokens, at least 20, 4 beams.

The folder of a summariser is written by `attune_export.summariser`: the converted model, and BART's `tokenizer.json`.
CTranslate2 counts, scores and ends otherwise than transformers' `generate`; the options here make up for that, so that
both find the same tokens. What differs still:

- transformers' processors set the tokens that are not allowed (an end before 20 tokens, a repeated trigram) to minus
  infinity after the softmax; CTranslate2 does so before it, so that the others share their probability. That is
  `generate(renormalize_logits=True)`, which is off by default in transformers: by default a beam also loses the
  probability of what it is not allowed to say, and now and then another beam wins.
- where a summary is cut off at 150 tokens while others have ended, CTranslate2 keeps the best four by scores that count
  the cut ones a token shorter than transformers does. The best of the four is chosen here as transformers chooses it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from attune_client.protocol.profiles import TOKENIZER_FILE
from attune_ensemble.call import UNLIMITED, CallContext

if TYPE_CHECKING:
    import ctranslate2

__all__ = [
    "LEAST_TOKENS",
    "LENGTH_PENALTY",
    "MAX_SOURCE_TOKENS",
    "MOST_TOKENS",
    "NO_REPEAT_NGRAM_SIZE",
    "NUM_BEAMS",
    "BartSummariser",
]

LEAST_TOKENS, MOST_TOKENS = 20, 150
"""Length of a summary in tokens as transformers counts it: with the start tokens </s> and <s>, and with the end."""

NUM_BEAMS = 4

LENGTH_PENALTY = 2.0
"""As in BART-large-CNN's own configuration, like the next one; and the search ends with four ended summaries."""

NO_REPEAT_NGRAM_SIZE = 3

MAX_SOURCE_TOKENS = 1024
"""Positions of BART's encoder; a longer text is cut there."""

_START, _END = "<s>", "</s>"
_LOOK_S = 0.01


class BartSummariser:
    """Summarises texts with a converted BART; one search at a time, safe to use from several threads.

    Args:
        folder: the converted model and its tokenizer.
        device: cpu, or a GPU such as cuda:1.
        compute_type: CTranslate2's type of computation; the weights are converted to it when they are loaded.
        threads: of a search, on a CPU.

    Raises:
        RuntimeError, ValueError: CTranslate2 cannot load the folder, or does not compute so on that device.
    """

    def __init__(self, folder: Path, device: str, compute_type: str, threads: int) -> None:
        import ctranslate2

        kind, _, index = device.partition(":")
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_SOURCE_TOKENS)
        self._translator = ctranslate2.Translator(
            str(folder), device=kind, device_index=int(index or 0), compute_type=compute_type, intra_threads=threads
        )
        self._turn = threading.Lock()
        self._search: ctranslate2.AsyncTranslationResult | None = None

    def close(self) -> None:
        """Wait for a search that runs, and release the memory of the weights; the model cannot be used afterwards."""
        with self._turn_of(UNLIMITED):
            self._translator.unload_model()

    def summarise(self, text: str, *, context: CallContext) -> str:
        """Summarise a text of any length, of which the first 1,024 tokens are read.

        CTranslate2 cannot stop a beam search. So a caller whose context ends gets its error within a hundredth of a
        second, and the search goes on unheard for at most 150 tokens; who comes next waits for its end, as for that of
        any other search, and never begins one for a caller that has gone.

        Raises what `CallContext.check` raises.
        """
        tokens = self.generate(self._tokenizer.encode(text).tokens, context=context)
        ids = [id_ for token in tokens if (id_ := self._tokenizer.token_to_id(token)) is not None]
        return " ".join(self._tokenizer.decode(ids, skip_special_tokens=True).split())

    def generate(self, source: list[str], *, context: CallContext) -> list[str]:
        """Return the tokens of the summary of `source`, its own start and end among them, both as transformers has it.

        Raises what `CallContext.check` raises.
        """
        with self._turn_of(context):
            self._search = self._begin(source)
            _wait_for(self._search, context)
            result = self._search.result()
        best, _ = max(zip(result.hypotheses, result.scores, strict=True), key=lambda found: _score(*found))
        return [_END, *best] if best[-1] == _END else [_END, *best, _END]

    def _begin(self, source: list[str]) -> ctranslate2.AsyncTranslationResult:
        [search] = self._translator.translate_batch(
            [source],
            target_prefix=[[_START]],  # transformers forces it as the first token
            asynchronous=True,
            beam_size=NUM_BEAMS,
            num_hypotheses=NUM_BEAMS,
            length_penalty=LENGTH_PENALTY,
            no_repeat_ngram_size=NO_REPEAT_NGRAM_SIZE,
            # Not counted here: </s> in front, and the end, which transformers forces as the last of 150 tokens.
            max_decoding_length=MOST_TOKENS - 2,
            # transformers allows the end as soon as 20 tokens stand in front of it, </s> among them.
            min_decoding_length=LEAST_TOKENS - 1,
            return_end_token=True,  # counted in the length that scores are divided by
            return_scores=True,
            max_input_length=0,
        )
        return search

    @contextmanager
    def _turn_of(self, context: CallContext) -> Iterator[None]:
        """While this lasts, no other search runs; raises what `CallContext.check` raises while it waits for that."""
        while not self._turn.acquire(timeout=_LOOK_S):
            context.check("a summary")
        try:
            if self._search is not None:  # of a caller that has gone
                _wait_for(self._search, context)
            context.check("a summary")
            yield
        finally:
            self._turn.release()


def _wait_for(search: Any, context: CallContext) -> None:
    while not search.done():
        context.check("a summary")
        time.sleep(_LOOK_S)


def _score(tokens: list[str], score: float) -> float:
    """Return transformers' score of a summary from CTranslate2's, which does not count an end that was not reached."""
    length = len(tokens) if tokens[-1] == _END else len(tokens) + 1
    return score * float((len(tokens) / length) ** LENGTH_PENALTY)
