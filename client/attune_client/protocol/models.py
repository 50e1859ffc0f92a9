"""Every public tensor of every served model, declared once.

Configurations, adapters and clients derive from these declarations; nothing else spells a tensor's name.
Letters in comments: B batch, S segments, T samples, L tokens, N frames of music, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from attune_client.protocol.bounds import (
    MAX_GUIDANCE,
    MAX_SEGMENT_S,
    MAX_TEMPERATURE,
    MAX_TEXT_BYTES,
    MAX_TOKENS,
    MAX_TRANSCRIPT_BYTES,
    MIN_GUIDANCE,
    VAD_LIMITS,
)
from attune_client.protocol.tensors import Callee, DType, ModelSpec, TensorSpec

SPEECH_SAMPLE_RATE = 16_000
"""Sampling rate of every speech waveform inside the server, in Hz."""

MUSIC_SAMPLE_RATE = 32_000
"""Sampling rate of the music, in Hz."""

ENGLISH = "en"
"""The code of the one language whose words are understood."""

VAD_DIMENSIONS = ("valence", "arousal", "dominance")
"""The axes of emotion, in the order of every VAD tensor."""

NUM_EMOTIONS = 40
EMBEDDING_DIM = 384
REGRESSOR_MAX_BATCH = 16
SENTENCES_MAX_BATCH = 8
"""Sentences that are embedded at a time: of 512 tokens each they take 0.7 GB."""

_MAX_WAVEFORM = round((MAX_SEGMENT_S + 1.0) * SPEECH_SAMPLE_RATE)
"""Longest segment, and the second to which it is padded, in samples."""

_MAX_FRAMES, _MAX_WIDTH = 512, 2_048
"""Most frames of a segment's state, of which there are 50 a second, and its greatest width."""


class OtherLanguages(StrEnum):
    """What becomes of speech that is not English: refused, or recognised by the voice alone, without its words."""

    REFUSE = "refuse"
    VOICE = "voice"


class CrisisKind(StrEnum):
    """What words of a crisis are about: not whom, and not how it stands with anybody."""

    SUICIDE = "suicide"
    SELF_HARM = "self_harm"
    HARM_TO_OTHERS = "harm_to_others"


_FP32, _INT32, _INT64, _BYTES = DType.FP32, DType.INT32, DType.INT64, DType.BYTES

# Shared by several models, so declared above them.
AUDIO_FILE = TensorSpec("audio", _BYTES, (1,), "one encoded file: WAV, FLAC, MP3, OGG, M4A, AMR, WebM and the like")
WAVEFORM = TensorSpec(
    "waveform",
    _FP32,
    (-1,),
    f"16 kHz mono in -1..1, at most {MAX_SEGMENT_S:g} s, zero-padded to a length bucket",
    max_shape=(_MAX_WAVEFORM,),
)
NUM_SAMPLES = TensorSpec("num_samples", _INT64, (1,), "true length of the waveform in samples")
SEGMENT_TEXT = TensorSpec("transcript", _BYTES, (1,), "the segment's words, UTF-8", max_bytes=MAX_TRANSCRIPT_BYTES)
INPUT_IDS = TensorSpec(
    "input_ids",
    _INT64,
    (-1,),
    f"token ids in the vocabulary of the regressors' text tower, at most {MAX_TOKENS}, padded with 0 to a bucket",
    max_shape=(MAX_TOKENS,),
)
ATTENTION_MASK = TensorSpec(
    "attention_mask", _INT64, (-1,), "1 where a token is real, 0 where it is padding", max_shape=(MAX_TOKENS,)
)
# Under names of their own: the regressors may have another vocabulary, and no check would find its ids at fault.
SENTENCE_IDS = TensorSpec(
    "sentence_ids",
    _INT64,
    (-1,),
    f"BERT-uncased token ids for the sentence encoder, at most {MAX_TOKENS}, padded alike",
    max_shape=(MAX_TOKENS,),
)
SENTENCE_MASK = TensorSpec(
    "sentence_mask", _INT64, (-1,), "1 where a token of sentence_ids is real", max_shape=(MAX_TOKENS,)
)
# What the regressors have in common, as far as they do: which of these there are, and their widths W, is found at the
# export, and stands in the repository's configurations.
AUDIO_STATE = TensorSpec(
    "audio_state",
    _FP32,
    (-1, -1),
    "[F, W] the voice, frame by frame, where the regressors part",
    optional=True,
    max_shape=(_MAX_FRAMES, _MAX_WIDTH),
)
TEXT_STATE = TensorSpec(
    "text_state",
    _FP32,
    (-1, -1),
    "[L, W] the words, token by token, where the regressors part",
    optional=True,
    max_shape=(MAX_TOKENS, _MAX_WIDTH),
)
POOLED_STATE = TensorSpec(
    "pooled_state",
    _FP32,
    (-1,),
    "[W] voice and words, where they are the same up to their pooling",
    optional=True,
    max_shape=(_MAX_WIDTH,),
)
VALENCE = TensorSpec("valence", _FP32, (1,), "pleasantness, 1..5", limits=VAD_LIMITS)
AROUSAL_DOMINANCE = TensorSpec(
    "arousal_dominance", _FP32, (2,), "activation and sense of control, each 1..5", limits=VAD_LIMITS
)
VAD = TensorSpec("vad", _FP32, (3,), "valence, arousal, dominance, each 1..5", limits=VAD_LIMITS)
EMOTION_PROBABILITIES = TensorSpec(
    "emotion_probabilities", _FP32, (NUM_EMOTIONS,), "softmax over the 40 emotions", limits=(0.0, 1.0)
)
EXPECTED_PROBABILITIES = TensorSpec(
    "expected_probabilities", _FP32, (NUM_EMOTIONS,), "the same, averaged over how wrong VAD may be", limits=(0.0, 1.0)
)
EMOTION_LABELS = TensorSpec("emotion_labels", _BYTES, (NUM_EMOTIONS,), "the 40 emotions, in the probabilities' order")
EMBEDDING = TensorSpec(
    "embedding", _FP32, (EMBEDDING_DIM,), "mean-pooled, L2-normalised sentence embedding", limits=(-1.0, 1.0)
)
LEASE = TensorSpec(
    "lease",
    _BYTES,
    (1,),
    "token of the lease that the caller inside the server holds; when it ends, so does the work",
    optional=True,
)
"""Input of every model that works for longer than some milliseconds; the guard and calling models fill it.

It is nothing for clients: nobody outside the server's machine can hold one. Models that put requests together into one
batch have no such input.
"""

PART = TensorSpec(
    "part",
    _INT32,
    (1,),
    "number of the part of the stream that is asked for, from 0; whoever sends it asks for every next_part",
    optional=True,
)
"""Input of every model that streams, for those who hold a lease: the stream comes in parts, each of them the answer to
a request of its own.

Triton keeps the responses to a request until the last one is sent: in parts, it keeps those of one part.
"""

NEXT_PART = TensorSpec("next_part", _INT32, (1,), "the stream goes on: number of the part to ask for, the lease as now")
"""Output by itself, in the last response of every part but the last."""

INTERNAL_INPUTS = (LEASE, PART)
"""What the guard and calling models fill, and clients do not."""

UNSURE = TensorSpec(
    "emotion_unsure", _INT32, (1,), "1 where no emotion is much more probable than others: look at the next ones too"
)

DEADLINE = TensorSpec(
    "deadline_s",
    _FP32,
    (1,),
    "seconds that the request is given from here on, above 0 and at most `MAX_DEADLINE_S`; then it ends as timed out",
    optional=True,
)
"""Input of every model that answers a request as a whole; what it calls is given what is left.

Models that put requests together into one batch have no such input: whoever calls them looks before and after.
"""

OTHER_LANGUAGES = TensorSpec(
    "other_languages",
    _BYTES,
    (1,),
    "speech that is not English: one of `OtherLanguages`; refused unless told otherwise",
    optional=True,
    max_bytes=MAX_TEXT_BYTES,
)
LANGUAGE = TensorSpec("language", _BYTES, (1,), "the language that the speech was taken for, by its ISO 639-1 code")
LANGUAGE_PROBABILITY = TensorSpec(
    "language_probability", _FP32, (1,), "how likely that language is, 0..1", limits=(0.0, 1.0)
)

# Without words of a crisis both have F = 0; where no words were given to look through, they are missing.
CRISIS_KIND = TensorSpec("crisis_kind", _BYTES, (-1,), "[F] of each find of the crisis rule, one of `CrisisKind`")
CRISIS_PLACE = TensorSpec(
    "crisis_place",
    _INT32,
    (-1, 4),
    "[F, 4] where its words stand: the segment and the character at which they begin, the segment and the character "
    "before which they end; from 0, in Unicode code points of segment_transcript, or of the text without blanks around",
)

# Of the stages (`attune_client.protocol.stages`).
TRANSCRIBE_TIME = TensorSpec("transcribe_s", _FP32, (1,), "server time spent decoding and transcribing, in seconds")
RECOGNISE_TIME = TensorSpec("recognise_s", _FP32, (1,), "server time spent recognising the emotion, in seconds")
PROMPT_TIME = TensorSpec("prompt_s", _FP32, (1,), "server time spent on retrieval and prompt, in seconds")

_SPEECH_RESULTS = (
    TensorSpec("transcript", _BYTES, (1,), "all words, UTF-8"),
    LANGUAGE,
    LANGUAGE_PROBABILITY,
    VAD,
    TensorSpec("emotion", _BYTES, (1,), "the most probable of the 40 emotions for the overall VAD and all words"),
    EMOTION_PROBABILITIES,
    EMOTION_LABELS,
    UNSURE,
    TensorSpec("segment_start_s", _FP32, (-1,), "[S] where each segment starts, in seconds"),
    TensorSpec("segment_end_s", _FP32, (-1,), "[S] where each segment ends, in seconds"),
    TensorSpec("segment_transcript", _BYTES, (-1,), "[S] words of each segment"),
    TensorSpec("segment_vad", _FP32, (-1, 3), "[S, 3] VAD of each segment, each 1..5", limits=VAD_LIMITS),
    TensorSpec("segment_emotion", _BYTES, (-1,), "[S] the most probable emotion of each segment"),
    CRISIS_KIND,
    CRISIS_PLACE,
    TRANSCRIBE_TIME,
    RECOGNISE_TIME,
)

_SPEC_DOC = "JSON: tempo_bpm, mode, tonic, instruments, dynamics"

# What was retrieved is missing where a music_spec was given.
_PROMPT_RESULTS = (
    TensorSpec("retrieved_emotion", _BYTES, (1,), "label of the knowledge-base entry that was retrieved"),
    TensorSpec("similarity", _FP32, (1,), "cosine similarity of the query and the entry, -1..1", limits=(-1.0, 1.0)),
    TensorSpec("description", _BYTES, (1,), "the entry's music description"),
    TensorSpec("prompt", _BYTES, (1,), "the structured prompt for the music engine"),
    TensorSpec("prompt_writer", _BYTES, (1,), "which writer made the prompt"),
    TensorSpec("music_spec", _BYTES, (1,), _SPEC_DOC),
)


def _text_input(name: str, doc: str, *, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, _BYTES, (1,), doc, optional=optional, max_bytes=MAX_TEXT_BYTES)


MUSIC_OPTIONS = (
    TensorSpec("duration_s", _FP32, (1,), "length of the music in seconds", optional=True),
    TensorSpec("seed", _INT64, (1,), "same seed and inputs, same music; drawn and told if left out", optional=True),
    _text_input("engine", "music engine by name; empty for the profile's own", optional=True),
)

# The fields of `SamplingSettings`.
_TEMPERATURE_DOC = f"of an engine's sampling, 0 (the likeliest token) to {MAX_TEMPERATURE:g}"
_GUIDANCE_DOC = f"of an engine's classifier-free guidance, {MIN_GUIDANCE:g} (none) to {MAX_GUIDANCE:g}"
_SAMPLING_OPTIONS = (
    TensorSpec("temperature", _FP32, (1,), _TEMPERATURE_DOC, optional=True),
    TensorSpec("top_k", _INT32, (1,), "an engine samples from this many tokens; 0: from all", optional=True),
    TensorSpec("top_p", _FP32, (1,), "an engine samples from tokens that hold this much probability", optional=True),
    TensorSpec("guidance", _FP32, (1,), _GUIDANCE_DOC, optional=True),
)

_MUSIC_RESULTS = (
    TensorSpec("music", _FP32, (-1, -1), "[N, C] the next chunk of music, in -1..1"),
    TensorSpec("sample_rate", _INT32, (1,), "of the music, in Hz"),
    TensorSpec("engine", _BYTES, (1,), "the music engine that plays"),
    TensorSpec("duration_s", _FP32, (1,), "length of the music in seconds"),
    TensorSpec("seed", _INT64, (1,), "the music's seed"),
)

_TEXT_OR_EMOTION_INPUTS = (
    _text_input("emotion", "one of the 40 emotions", optional=True),
    TensorSpec("vad", _FP32, (3,), "VAD that shades tempo and dynamics, each 1..5", optional=True),
    _text_input("text", "free text to search by; the prompt itself beside a music_spec", optional=True),
    _text_input("music_spec", f"{_SPEC_DOC}; nothing is searched for", optional=True),
)

SPEECH_TO_TEXT = ModelSpec(
    "speech_to_text",
    inputs=(AUDIO_FILE, OTHER_LANGUAGES, DEADLINE, LEASE),
    outputs=(
        TensorSpec("waveform", _FP32, (-1, -1), "[S, T] the segments, 16 kHz mono, zero-padded to one bucket"),
        TensorSpec("num_samples", _INT64, (-1, 1), "[S, 1] true length of each segment in samples"),
        TensorSpec("start_s", _FP32, (-1,), "[S] where each segment starts, in seconds"),
        TensorSpec("end_s", _FP32, (-1,), "[S] where each segment ends, in seconds"),
        TensorSpec("transcript", _BYTES, (-1, 1), "[S, 1] words of each segment; empty where nothing was said"),
        LANGUAGE,
        LANGUAGE_PROBABILITY,
    ),
)

TEXT_TOKENIZER = ModelSpec(
    "text_tokenizer",
    inputs=(SEGMENT_TEXT,),
    outputs=(INPUT_IDS, ATTENTION_MASK, SENTENCE_IDS, SENTENCE_MASK),
    max_batch_size=64,
)

SPEECH_INPUTS = (WAVEFORM, NUM_SAMPLES, INPUT_IDS, ATTENTION_MASK)
"""What a regressor is computed from: a segment's voice and words."""

SPEECH_STATES = (AUDIO_STATE, TEXT_STATE, POOLED_STATE)
"""What `emotion_encoder` makes of them for all regressors, and a regressor takes in their place."""

_REGRESSOR_INPUTS = (*(replace(tensor, optional=True) for tensor in SPEECH_INPUTS), *SPEECH_STATES)

# The model in front of the regressors, and the regressors, with all inputs and outputs that an export may give them.
EMOTION_ENCODER = ModelSpec(
    "emotion_encoder",
    inputs=_REGRESSOR_INPUTS[: len(SPEECH_INPUTS)],
    outputs=SPEECH_STATES,
    max_batch_size=REGRESSOR_MAX_BATCH,
)

VALENCE_MODEL = ModelSpec(
    "valence",
    inputs=_REGRESSOR_INPUTS,
    outputs=(VALENCE,),
    max_batch_size=REGRESSOR_MAX_BATCH,
)

AROUSAL_DOMINANCE_MODEL = ModelSpec(
    "arousal_dominance",
    inputs=_REGRESSOR_INPUTS,
    outputs=(AROUSAL_DOMINANCE,),
    max_batch_size=REGRESSOR_MAX_BATCH,
)

EMOTION_CLASSIFIER = ModelSpec(
    "emotion_classifier",
    inputs=(VALENCE, AROUSAL_DOMINANCE),
    outputs=(VAD, EMOTION_PROBABILITIES, EXPECTED_PROBABILITIES),
    max_batch_size=256,
)

EMOTION_RECOGNITION = ModelSpec(
    "emotion_recognition",
    inputs=(WAVEFORM, NUM_SAMPLES, SEGMENT_TEXT),
    outputs=(VAD, EMOTION_PROBABILITIES),
    max_batch_size=REGRESSOR_MAX_BATCH,
    # The tokenizer, what the regressors have in common, the two regressors side by side, then the classifier.
    steps=(TEXT_TOKENIZER, EMOTION_ENCODER, VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL, EMOTION_CLASSIFIER),
)

SENTENCE_ENCODER = ModelSpec(
    "sentence_encoder",
    inputs=(SENTENCE_IDS, SENTENCE_MASK),
    outputs=(EMBEDDING,),
    max_batch_size=SENTENCES_MAX_BATCH,
)

GENTLE = TensorSpec(
    "gentle",
    _INT32,
    (1,),
    "not 0: choose among the gentle descriptions alone, for an emotion the one nearest to the VAD, and shade nothing",
    optional=True,
)

MUSIC_PROMPT = ModelSpec(
    "music_prompt",
    inputs=(*_TEXT_OR_EMOTION_INPUTS, GENTLE, DEADLINE, LEASE),
    outputs=_PROMPT_RESULTS,
    calls=(Callee(TEXT_TOKENIZER.name, unless=("music_spec",)), Callee(SENTENCE_ENCODER.name, unless=("music_spec",))),
)

MUSIC_GENERATOR = ModelSpec(
    "music_generator",
    inputs=(
        _text_input("prompt", "the prompt"),
        _text_input("music_spec", _SPEC_DOC),
        *MUSIC_OPTIONS,
        *_SAMPLING_OPTIONS,
        TensorSpec("check_only", _INT32, (1,), "not 0: check the options, announce, and play nothing", optional=True),
        DEADLINE,
        LEASE,
        PART,
    ),
    outputs=(*_MUSIC_RESULTS, NEXT_PART),
    decoupled=True,
)

SPEECH_EMOTION = ModelSpec(
    "speech_emotion",
    inputs=(AUDIO_FILE, OTHER_LANGUAGES, DEADLINE, LEASE),
    outputs=_SPEECH_RESULTS,
    calls=(
        Callee(SPEECH_TO_TEXT.name),
        Callee(EMOTION_RECOGNITION.name),
        Callee(EMOTION_CLASSIFIER.name),
        # The words' part of the choice has a sentence's embedding.
        Callee(TEXT_TOKENIZER.name),
        Callee(SENTENCE_ENCODER.name),
    ),
)

_WISH = tuple(tensor.name for tensor in _TEXT_OR_EMOTION_INPUTS)
"""What a request has that says what to make music for, and has no recording."""

MUSIC_THERAPY = ModelSpec(
    "music_therapy",
    # A recording or a wish, one of them.
    inputs=(
        replace(AUDIO_FILE, optional=True),
        OTHER_LANGUAGES,
        *_TEXT_OR_EMOTION_INPUTS,
        *MUSIC_OPTIONS,
        DEADLINE,
        LEASE,
        PART,
    ),
    # The first response carries everything that there is but the music; the ones after it carry the music.
    outputs=(
        *_SPEECH_RESULTS,
        *_PROMPT_RESULTS,
        PROMPT_TIME,
        TensorSpec("server_version", _BYTES, (1,), "version of Attune that serves"),
        *_MUSIC_RESULTS,
        NEXT_PART,
    ),
    decoupled=True,
    calls=(
        Callee(SPEECH_TO_TEXT.name, unless=_WISH),
        Callee(EMOTION_RECOGNITION.name, unless=_WISH),
        Callee(EMOTION_CLASSIFIER.name, unless=("emotion", "text", "music_spec")),  # for a VAD alone as well
        Callee(TEXT_TOKENIZER.name, unless=_WISH),
        Callee(SENTENCE_ENCODER.name, unless=_WISH),
        Callee(MUSIC_PROMPT.name),
        Callee(MUSIC_GENERATOR.name),
    ),
    calls_streaming=(Callee(MUSIC_GENERATOR.name),),
)

MODELS: dict[str, ModelSpec] = {
    model.name: model
    for model in (
        SPEECH_TO_TEXT,
        TEXT_TOKENIZER,
        EMOTION_ENCODER,
        VALENCE_MODEL,
        AROUSAL_DOMINANCE_MODEL,
        EMOTION_CLASSIFIER,
        EMOTION_RECOGNITION,
        SENTENCE_ENCODER,
        MUSIC_PROMPT,
        MUSIC_GENERATOR,
        SPEECH_EMOTION,
        MUSIC_THERAPY,
    )
}
"""Every model of the repository, by name, in the order of the pipeline."""
