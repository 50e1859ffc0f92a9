"""`emotion_classifier`: the CNN of the emotion map, from VAD to the 40 emotions."""

from __future__ import annotations

import json
from pathlib import Path

from attune_client.protocol.models import EMOTION_CLASSIFIER
from attune_client.protocol.profiles import EMBEDDED, GPU, LABELS_FILE, TENSORRT
from attune_ensemble.speech.choice import CHOICE_FILE
from attune_export.choice import choice_folder
from attune_export.digests import digests_of, digests_of_code, digests_of_exporter
from attune_export.errors import ExportError
from attune_export.parts import ExportOptions, Part, export_graph, shipped_artifacts
from attune_export.served_model import ONE_THREAD, Kind, ServedModel, Settings

__all__ = ["MODEL"]


def _part(options: ExportOptions) -> Part:
    folder = options.emotion_map or shipped_artifacts() / "emotion_map"
    if not (folder / "labels.json").is_file():
        raise ExportError(f"{folder} holds no emotion map; `attune train emotion-map` trains one")

    choice = choice_folder(options)

    def build(target: Path) -> float:
        from attune_ensemble.prompting.knowledge import load_emotions
        from attune_training.emotion_choice.storage import read_vad_error
        from attune_training.emotion_map import load_emotion_classifier

        labels = [emotion.label for emotion in load_emotions()]
        if json.loads((folder / "labels.json").read_text(encoding="utf-8")) != labels:
            raise ExportError(f"{folder}: its labels are not those of the knowledge base; train the emotion map again")
        deviation = export_graph(load_emotion_classifier(folder, read_vad_error(choice)), EMOTION_CLASSIFIER, target)
        (target / LABELS_FILE).write_text("\n".join(labels) + "\n", encoding="utf-8")
        return deviation

    code = digests_of_code("attune_training.emotion_map", "attune_ensemble.prompting.knowledge")
    made_from = digests_of(folder) | digests_of(choice, CHOICE_FILE) | digests_of_exporter() | code
    return Part(EMOTION_CLASSIFIER.name, made_from, (), build)


MODEL = ServedModel(
    EMOTION_CLASSIFIER,
    Kind.ONNX,
    settings={
        EMBEDDED: Settings(parameters=ONE_THREAD),
        GPU: Settings(on_gpu=True),
        TENSORRT: Settings(on_gpu=True, tensorrt=True),
    },
    max_queue_delay_us=0,
    part=_part,
)
