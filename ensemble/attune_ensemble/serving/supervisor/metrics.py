"""The metrics of the server, the guard and the supervisor as one text in Prometheus' format."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from attune_ensemble.serving.guard import METRICS as GUARD_METRICS
from attune_ensemble.serving.supervisor.policy import Status

__all__ = ["METRICS", "exposition"]

METRICS = GUARD_METRICS | {
    "attune_ready": ("gauge", "1 while every model is served"),
    "attune_server_up": ("gauge", "1 while the server answers"),
    "attune_server_restarts_total": ("counter", "How often the server was started again"),
    "attune_model_ready": ("gauge", "1 while the model is served"),
    "attune_model_restarts_total": ("counter", "How often the model's process was brought back"),
    "attune_shared_memory_used_bytes": ("gauge", "Of /dev/shm, through which the server's processes pass tensors"),
    "attune_shared_memory_size_bytes": ("gauge", "All of it"),
}
"""Type and meaning of each family of samples, beside those of the server's own."""

_HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_SHARED_MEMORY = "/dev/shm"

_TIMEOUT_S = 2.0
_MAX_BYTES = 2**24


def exposition(server_url: str | None, guard: Mapping[str, float], status: Status, models: Collection[str]) -> str:
    """The text; `server_url` is the `host:port` of the server's metrics, which are left out where it does not answer.

    Args:
        server_url: None where there is no server.
        guard: the guard's samples by name and labels.
        status: of the supervisor.
        models: names of all models.
    """
    text = _fetched(server_url) if server_url else ""
    samples = dict(guard) | _own(status, models, is_up=bool(text)) | _shared_memory()
    return "".join(f"{line}\n" for line in (*text.splitlines(), *_lines(samples)))


def _own(status: Status, models: Collection[str], *, is_up: bool) -> dict[str, float]:
    samples = {
        "attune_ready": float(status.is_ready),
        "attune_server_up": float(is_up),
        "attune_server_restarts_total": float(status.server_restarts),
    }
    for model in models:
        label = f'{{model="{model}"}}'
        samples[f"attune_model_ready{label}"] = float(status.serves(model))
        samples[f"attune_model_restarts_total{label}"] = float(status.model_restarts.get(model, 0))
    return samples


def _shared_memory() -> dict[str, float]:
    with contextlib.suppress(OSError):
        system = os.statvfs(_SHARED_MEMORY)
        used = system.f_blocks - system.f_bfree
        return {
            "attune_shared_memory_used_bytes": float(used * system.f_frsize),
            "attune_shared_memory_size_bytes": float(system.f_blocks * system.f_frsize),
        }
    return {}


def _lines(samples: Mapping[str, float]) -> Iterator[str]:
    """The samples by family, each with its meaning and type."""
    families: defaultdict[str, list[str]] = defaultdict(list)
    for name, value in samples.items():
        families[_family(name)].append(f"{name} {value:.10g}")
    for family, lines in sorted(families.items()):
        kind, meaning = METRICS[family]
        yield f"# HELP {family} {meaning}"
        yield f"# TYPE {family} {kind}"
        yield from lines


def _family(name: str) -> str:
    """The family of a sample: of a histogram's, its name without what part it is."""
    plain = name.partition("{")[0]
    whole = (plain.removesuffix(part) for part in _HISTOGRAM_PARTS if plain.endswith(part))
    return next((each for each in whole if METRICS.get(each, ("",))[0] == "histogram"), plain)


def _fetched(url: str) -> str:
    connection = http.client.HTTPConnection(url, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.read(_MAX_BYTES).decode(errors="replace") if answer.status == http.client.OK else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
