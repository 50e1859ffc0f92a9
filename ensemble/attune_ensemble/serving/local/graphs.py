"""What of the repository is no Python model: ONNX graphs, and ensembles of other models, as services."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

from attune_client.protocol.errors import InvalidRequest, ServerError, ServerUnavailable
from attune_client.protocol.tensors import Tensors
from attune_ensemble.call import Call, CallContext
from attune_ensemble.serving.onnx_backend.session import Arrays, Job, ModelError, NotFiniteError, OnnxModel
from attune_ensemble.serving.services import Service

__all__ = ["create_ensemble", "create_graph"]

_log = logging.getLogger(__name__)


def create_graph(folder: Path, config: ModelConfig) -> Service:
    """The graph in a model's version folder, by ONNX Runtime on the CPU; `ServerUnavailable` if it cannot be loaded."""
    try:
        model = OnnxModel(folder, _as_json(config), log=_log.warning)
    except ModelError as error:
        raise ServerUnavailable(str(error)) from error
    names = tuple(output.name for output in config.output)

    def answer(inputs: Tensors, *, context: CallContext) -> Arrays:
        (result,) = model.run([Job(inputs, names)])
        if isinstance(result, ModelError):  # whose fault it is, the backend tells the server by the same rule
            kind = ServerError if isinstance(result, NotFiniteError) else InvalidRequest
            raise kind(str(result))
        return result

    return Service(answer)


def create_ensemble(config: ModelConfig, call: Call) -> Service:
    """An ensemble as its configuration describes it: its steps one after the other, each by `call`."""

    def answer(inputs: Tensors, *, context: CallContext) -> Tensors:
        tensors = dict(inputs)
        for step in config.ensemble_scheduling.step:
            given = {own: tensors[shared] for own, shared in step.input_map.items() if shared in tensors}
            outputs = call(step.model_name, given, context=context)
            tensors |= {shared: outputs[own] for own, shared in step.output_map.items()}
        return {output.name: tensors[output.name] for output in config.output}

    return Service(answer)


def _as_json(config: ModelConfig) -> dict[str, Any]:
    """The configuration as the dictionary that Triton hands to a backend."""
    return {"max_batch_size": config.max_batch_size} | MessageToDict(config, preserving_proto_field_name=True)
