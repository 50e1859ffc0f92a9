"""Events for whoever operates the server: one line each, as JSON or as text.

A line is written by a thread of its own: a reader that does not read must not stop who supervises.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = ["Events"]

_MAX_WAITING = 1000
_CLOSE_S = 2.0
_DIGITS = 3


class Events:
    """Writes events to `stream`; thread-safe, and never raises. Of too many at a time the later ones are left out.

    Every line has `time` (ISO 8601, UTC) and `event`, and what else is known by name.
    """

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream, self._as_json = stream, as_json
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._left_out = 0
        self._thread = threading.Thread(target=self._write, name="events", daemon=True)
        self._thread.start()

    def tell(self, event: str, **fields: Any) -> None:
        """Write one event."""
        if self._left_out:
            fields["left_out"] = self._left_out
        try:
            self._lines.put_nowait(self._line({"time": _now(), "event": event, **fields}))
            self._left_out = 0
        except queue.Full:
            self._left_out += 1

    def close(self) -> None:
        """Write what is left, if somebody reads it."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(_CLOSE_S)

    def _line(self, fields: dict[str, Any]) -> str:
        plain = {name: _plain(value) for name, value in fields.items()}
        if self._as_json:
            return json.dumps(plain)
        head = f"{plain.pop('time')} {plain.pop('event')}"
        rest = " ".join(f"{name}={_shown(value)}" for name, value in plain.items())
        return f"{head}: {rest}" if rest else head

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads, or it is closed
                self._stream.write(f"{line}\n")
                self._stream.flush()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in sorted(value, key=str)]
    return str(value)


def _shown(value: Any) -> str:
    """A value on one line, in quotes where it has spaces."""
    text = str(value)
    return json.dumps(text) if any(character.isspace() for character in text) else text
