"""The rows that ONNX Runtime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from attune_client.protocol.models import AROUSAL_DOMINANCE_MODEL, EMOTION_ENCODER, VALENCE_MODEL
from attune_export.bench_encoders.batches import Arrays
from attune_export.bench_encoders.engines import Answers
from attune_export.bench_encoders.ways import Row

__all__ = ["OnnxSessions"]


class OnnxSessions:
    """The encoder's session, if there is one, and those of both regressors."""

    def __init__(self, row: Row, folder: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not row.spins:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graphs = folder / row.graphs

        def session(name: str) -> ort.InferenceSession:
            return ort.InferenceSession(graphs / f"{name}.onnx", options, providers=_providers(row))

        self._encoder = session(EMOTION_ENCODER.name) if (graphs / f"{EMOTION_ENCODER.name}.onnx").exists() else None
        self._heads = [session(spec.name) for spec in (VALENCE_MODEL, AROUSAL_DOMINANCE_MODEL)]

    def __call__(self, inputs: Arrays) -> Answers:
        """Return V, A, D, [B, 3]."""
        given = dict(inputs)
        if self._encoder is not None:
            states = self._encoder.run(None, _taken(self._encoder, given))
            given |= {output.name: state for output, state in zip(self._encoder.get_outputs(), states, strict=True)}
        outputs = [head.run(None, _taken(head, given))[0] for head in self._heads]
        return np.concatenate(outputs, axis=1)


def _taken(session: ort.InferenceSession, given: Arrays) -> Arrays:
    return {node.name: given[node.name] for node in session.get_inputs()}


def _providers(row: Row) -> list[Any]:
    """Return the row's provider, and those that take what it cannot run."""
    if row.provider == "TensorrtExecutionProvider":
        return [(row.provider, {"trt_fp16_enable": True}), "CUDAExecutionProvider"]
    return [row.provider]
