"""What is said of a served model beside its tensors: how it runs in each profile, and what is exported for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from attune_client.protocol.profiles import Profile
from attune_client.protocol.tensors import ModelSpec
from attune_export.parts import ExportOptions, Part

__all__ = ["ONE_THREAD", "PUBLIC", "Kind", "Places", "ServedModel", "Settings"]


class Kind(StrEnum):
    """What a model runs on."""

    PYTHON = "python"
    ONNX = "onnxruntime"
    ENSEMBLE = "ensemble"


@dataclass(frozen=True, slots=True)
class Places:
    """How many requests of a Python model are at work at once, and how many more may wait for their turn."""

    max_concurrent: int
    max_waiting: int


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model runs in one profile, and in those that inherit it without settings of their own.

    `on_gpu` gives it the GPU, `tensorrt` an engine in place of its ONNX graph; `instances` are processes. `parameters`
    reach the model as they are. `places` are the requests that a Python model takes on before it refuses.
    """

    on_gpu: bool = False
    tensorrt: bool = False
    instances: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    places: Places | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of the repository.

    `settings` has those of `embedded` at least, but for an ensemble, whose steps are models with settings of their own. `max_queue_delay_us` is how long its dynamic batcher waits; None: it has none. `part` says what
    `attune export` places for it; None: nothing. Of a Python model's part, `weights` is the name that it has in
    `embedded`; the parameter of that name holds the profile's own.
    """

    spec: ModelSpec
    kind: Kind
    settings: Mapping[Profile, Settings] = field(default_factory=dict)
    max_queue_delay_us: int | None = None
    weights: str = ""
    part: Callable[[ExportOptions], Part] | None = None

    def settings_in(self, profile: Profile) -> Settings:
        """Its settings in a profile."""
        return profile.choose(self.settings) or Settings()


# The two regressors run side by side, each on a core of its own.
ONE_THREAD = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
"""Parameters of a graph that computes with one thread."""

# Where clients come in, requests are bounded: what is one too many is refused at once, and told when to try again.
# Models that answer in milliseconds are not bounded themselves: a bound on Triton's own queue makes its batcher poll
# every half second.
PUBLIC = Places(16, 16)
"""Places of a model that clients call: whoever speaks or listens is at work for seconds to minutes, so few may wait."""
