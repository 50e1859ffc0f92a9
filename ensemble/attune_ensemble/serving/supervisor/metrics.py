"""The metrics of the server, the guard and the supervisor as one text in Prometheus' format."""

from __future__ import annotations

import http.client
from collections.abc import Collection, Iterable, Iterator, Mapping

from attune_ensemble.serving.supervisor.policy import Status

__all__ = ["exposition"]

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
    samples = dict(guard) | _own(status, models, is_up=bool(text))
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


def _lines(samples: Mapping[str, float]) -> Iterator[str]:
    """The samples by family, each with its type."""
    for family in sorted({_family(name) for name in samples}):
        yield f"# TYPE {family} {'counter' if family.endswith('_total') else 'gauge'}"
        yield from _of_family(family, samples.items())


def _of_family(family: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    return (f"{name} {value:.10g}" for name, value in sorted(samples) if _family(name) == family)


def _family(name: str) -> str:
    return name.partition("{")[0]


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
