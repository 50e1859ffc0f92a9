"""Golden numbers of every shipped model: what the exported files answer to fixed inputs.

Run: pytest tests/unit/test_golden.py
After a model was changed on purpose, write the numbers again, and look at the difference before it is committed:
    attune export && python -m tests.unit.test_golden
"""

import difflib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile

from attune_client.protocol.models import MODELS, SPEECH_SAMPLE_RATE
from attune_ensemble.prompting.knowledge import load_emotions
from attune_ensemble.prompting.retrieval import KnowledgeIndex
from attune_ensemble.speech.tokens import TextTokenizers
from attune_ensemble.speech.transcription import Transcriber

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "models.json"
REPOSITORY = ROOT / "model_repository"

# Float32 on another CPU differs in the last digits; int8 transcription may differ in a word.
TOLERANCE = 1e-3
WORDS_IN_COMMON = 0.9

SENTENCES = {
    "sense_and_sensibility_0870.wav": "And Mr. John Dashwood had then leisure to consider how much there might be "
    "prudently in his power to do for them.",
    "sense_and_sensibility_0890.wav": "Unless to be rather cold hearted and rather selfish is to be ill disposed.",
    "sense_and_sensibility_0920.wav": "Had he married a more amiable woman, he might have been made still more "
    "respectable than he was.",
}
RATINGS = [
    [1.5, 4.5, 4.0],
    [2.0, 2.0, 2.0],
    [3.0, 3.0, 3.0],
    [4.5, 2.0, 3.5],
    [4.5, 4.5, 4.5],
]  # valence, arousal, dominance
SEARCH = "a calm and hopeful melody after a long sadness"
EMBEDDING_HEAD = 8


def run(model: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(REPOSITORY / model / "1" / "model.onnx")
    given = {tensor.name: inputs[tensor.name] for tensor in session.get_inputs()}
    return session.run([tensor.name for tensor in MODELS[model].outputs], given)


def encoded(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs with what `emotion_encoder` makes of them; unchanged where the exported regressors have none."""
    graph = REPOSITORY / "emotion_encoder" / "1" / "model.onnx"
    if not graph.is_file():
        return inputs
    session = onnxruntime.InferenceSession(graph)
    outputs = [tensor.name for tensor in session.get_outputs()]
    given = {tensor.name: inputs[tensor.name] for tensor in session.get_inputs()}
    return inputs | dict(zip(outputs, session.run(outputs, given), strict=True))


def tokens(*texts: str) -> dict[str, np.ndarray]:
    """What `text_tokenizer` answers."""
    tokenizers = TextTokenizers(REPOSITORY / "text_tokenizer" / "1" / "tokenizers")
    return tokenizers.answer({"transcript": np.array([[text.encode()] for text in texts], object)})


def words(text: str) -> dict[str, np.ndarray]:
    return {name: tokens(text)[name] for name in ("input_ids", "attention_mask")}


def embedding(text: str) -> np.ndarray:
    inputs = {name: tokens(text)[name] for name in ("sentence_ids", "sentence_mask")}
    return run("sentence_encoder", inputs)[0][0]


def waveform(name: str) -> np.ndarray:
    samples, rate = soundfile.read(ROOT / "samples" / name, dtype="float32")
    assert rate == SPEECH_SAMPLE_RATE
    return samples


def speech_to_text() -> dict[str, str]:
    """The words of each sample."""
    transcriber = Transcriber(REPOSITORY / "speech_to_text" / "1" / "whisper")
    return {
        name: " ".join(segment.transcript for segment in transcriber.transcribe(waveform(name))) for name in SENTENCES
    }


def text_tokenizer() -> dict[str, list[int]]:
    """The token ids of each sentence."""
    return {name: tokens(text)["input_ids"][0].tolist() for name, text in SENTENCES.items()}


def regressor(model: str) -> dict[str, list[float]]:
    """The prediction for each sample and its words, 1..5."""
    answers = {}
    for name, text in SENTENCES.items():
        speech = waveform(name)
        audio = {"waveform": speech[None], "num_samples": np.array([[len(speech)]])}
        answers[name] = run(model, encoded(audio | words(text)))[0][0].tolist()
    return answers


def emotion_classifier() -> dict[str, dict[str, float]]:
    """The most probable emotion of each rating: of VAD as it is, and where its error is averaged over."""
    labels = [emotion.label for emotion in load_emotions()]
    ratings = np.array(RATINGS, np.float32)
    _, *tables = run("emotion_classifier", {"valence": ratings[:, :1], "arousal_dominance": ratings[:, 1:]})
    return {
        f"{rating}{suffix}": {labels[row.argmax()]: float(row.max())}
        for table, suffix in zip(tables, ("", ", with its error"), strict=True)
        for rating, row in zip(RATINGS, table, strict=True)
    }


def sentence_encoder() -> dict[str, list[float]]:
    """The first numbers of each sentence's embedding."""
    return {name: embedding(text)[:EMBEDDING_HEAD].tolist() for name, text in SENTENCES.items()}


def music_prompt() -> dict[str, float]:
    """What a search finds, and its similarity."""
    index = KnowledgeIndex(REPOSITORY / "music_prompt" / "1" / "knowledge" / "index", load_emotions())
    found = index.search(embedding(SEARCH), None)
    return {found.emotion.label: found.similarity}


ANSWERS: dict[str, Callable[[], dict]] = {
    "speech_to_text": speech_to_text,
    "text_tokenizer": text_tokenizer,
    "valence": lambda: regressor("valence"),
    "arousal_dominance": lambda: regressor("arousal_dominance"),
    "emotion_classifier": emotion_classifier,
    "sentence_encoder": sentence_encoder,
    "music_prompt": music_prompt,
}


def is_exported(model: str) -> bool:
    return (REPOSITORY / model / "1" / "attune-export.json").is_file()


def answer(model: str) -> dict:
    if not all(is_exported(needed) for needed in (model, "text_tokenizer", "sentence_encoder")):
        pytest.skip(f"{model} is not in the repository; run `attune export` first")
    return ANSWERS[model]()


def golden(model: str) -> dict:
    assert GOLDEN.is_file(), "no golden numbers; write them with `python -m tests.unit.test_golden`"
    return json.loads(GOLDEN.read_text(encoding="utf-8"))[model]


@pytest.mark.parametrize(
    "model", ["valence", "arousal_dominance", "emotion_classifier", "sentence_encoder", "music_prompt"]
)
def test_numbers(model):
    got, expected = answer(model), golden(model)
    assert got.keys() == expected.keys()
    for name, numbers in expected.items():
        assert got[name] == pytest.approx(numbers, abs=TOLERANCE), name


def test_tokens():
    assert answer("text_tokenizer") == golden("text_tokenizer")


def test_words():
    got = answer("speech_to_text")
    for name, expected in golden("speech_to_text").items():
        common = difflib.SequenceMatcher(None, got[name].lower().split(), expected.lower().split()).ratio()
        assert common >= WORDS_IN_COMMON, got[name]


@pytest.mark.parametrize("model", ["valence", "arousal_dominance"])
def test_a_regressor_tells_the_samples_apart(model):
    """Numbers that hardly differ would hold for a model that ignores its input."""
    values = np.array(list(answer(model).values()))  # [samples, outputs]
    assert values.min() >= 1.0
    assert values.max() <= 5.0
    assert np.ptp(values, axis=0).min() > 10 * TOLERANCE


def main() -> None:
    """Write the golden numbers of every model."""
    if missing := [model for model in ANSWERS if not is_exported(model)]:
        raise SystemExit(f"run `attune export` first: the repository lacks {', '.join(missing)}")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({model: ANSWERS[model]() for model in ANSWERS}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
