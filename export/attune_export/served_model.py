"""The deployment of a served model: its settings in each profile, and the files that are exported for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from attune_client.protocol.profiles import Profile
from attune_client.protocol.tensors import ModelSpec
from attune_export.parts import ExportOptions, Part

__all__ = ["ONE_THREAD", "PUBLIC", "Kind", "Places", "ServedModel", "Settings", "ahead", "segments_per_call"]


class Kind(StrEnum):
    """The backend of a model."""

    PYTHON = "python"
    ONNX = "onnxruntime"
    ENSEMBLE = "ensemble"


@dataclass(frozen=True, slots=True)
class Places:
    """Limits of a Python model: requests processed concurrently, and further requests that may wait."""

    max_concurrent: int
    max_waiting: int


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model runs in one profile, and in the profiles that inherit from it.

    `on_gpu` places it on the GPU, `tensorrt` replaces its ONNX graph by an engine, and `instances` is the number of
    processes. `parameters` are passed to the model unchanged. `places` limits the requests of a Python model.
    """

    on_gpu: bool = False
    tensorrt: bool = False
    instances: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    places: Places | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of the repository: how it is run, and what is exported for it.

    `settings` holds at least those of `embedded`; an ensemble has none. `max_queue_delay_us` is the delay of the
    dynamic batcher in microseconds; None: no dynamic batching. `part` returns the files that `attune export` places;
    None: no files. `weights` is the name of these files in `embedded`; a Python model receives the name for its
    profile as the parameter `weights`.
    """

    spec: ModelSpec
    kind: Kind
    settings: Mapping[Profile, Settings] = field(default_factory=dict)
    max_queue_delay_us: int | None = None
    weights: str = ""
    part: Callable[[ExportOptions], Part] | None = None

    def settings_in(self, profile: Profile) -> Settings:
        """Return the settings for `profile`, inherited ones where the model has none of its own."""
        return profile.choose(self.settings) or Settings()


ONE_THREAD = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
"""Parameters of an ONNX model that uses one thread."""

# Models that clients call limit their requests: an excess request is refused immediately, with a time to try again.
# Models that answer within milliseconds have no limit: a limit on Triton's queue makes its batcher poll every 500 ms.
PUBLIC = Places(16, 16)
"""Limits of a model that clients call. A request takes seconds to minutes, so only few may wait."""


def ahead(num_bytes: int) -> dict[str, str]:
    """Return the parameter of a model that streams: how far it may be ahead of its reader, in bytes.

    At least 30 s of music, so that no listener hears a pause: 7.7 MB in stereo, 3.9 MB in mono.
    """
    return {"ahead_bytes": str(num_bytes)}


def segments_per_call(count: int) -> dict[str, str]:
    """Return the parameter of a model that recognises narrations: how many segments the regressors get at a time.

    A batch cannot be stopped. On two cores one of 4 segments takes up to 0.7 s, and one of 16 four times as long; on a
    GPU large ones are fast.
    """
    return {"segments_per_call": str(count)}
