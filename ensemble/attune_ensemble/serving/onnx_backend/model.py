"""The onnxruntime backend, Python-based: Triton runs this file for every model whose backend is "onnxruntime".

An adapter: what it does is in `attune_ensemble.serving.onnx_backend.session`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from attune_ensemble.serving.onnx_backend.session import (
    Arrays,
    Job,
    ModelError,
    NotFiniteError,
    OnnxModel,
    complete_config,
)


class TritonPythonModel:
    """One instance of one ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in the configuration from the graph."""
        complete_config(auto_complete_model_config.as_dict(), Path(pb_utils.get_model_dir()))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph and check that the configuration fits it."""
        self._model = OnnxModel(
            Path(args["model_repository"]) / args["model_version"],
            json.loads(args["model_config"]),
            log=pb_utils.Logger.log_warn,
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, those of equal shapes in one run."""
        return [_response(result) for result in self._model.run([_job(request) for request in requests])]


def _job(request: Any) -> Job:
    inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    return Job(inputs, tuple(request.requested_output_names()))


def _response(result: Arrays | ModelError) -> Any:
    if isinstance(result, ModelError):
        pb_utils.Logger.log_error(str(result))
        codes = pb_utils.TritonError
        code = codes.INTERNAL if isinstance(result, NotFiniteError) else codes.INVALID_ARG
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result), code))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in result.items()])
