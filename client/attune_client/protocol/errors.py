"""What can go wrong, as one tree, and how it crosses the wire.

    AttuneError
    ├── InvalidRequest               the request is at fault; sending it again will not help
    │   ├── InvalidAudio
    │   │   ├── UnreadableFile       the client cannot read the file: missing, a folder, not permitted
    │   │   ├── EmptyAudio           no bytes, or no samples
    │   │   ├── UnreadableAudio      no recording, or none that can be decoded
    │   │   ├── TruncatedAudio       the file ends before its header says
    │   │   ├── NonFiniteAudio       samples that are NaN, infinite or absurd
    │   │   ├── AudioTooLong         more than 10 minutes, or too many samples
    │   │   ├── SilentAudio          nothing to hear
    │   │   ├── NoSpeech             something to hear, but no speech
    │   │   └── UnsupportedLanguage  speech, but not in English
    │   └── InvalidOption            an option outside its range, an unknown emotion or engine
    ├── ServerUnavailable            no server there, or not ready
    │   ├── ServerUnreachable        no connection to one: refused, or lost before the answer was complete
    │   └── ServerBusy               it has as much to do as it takes on; `retry_after_s` says when to try again
    ├── RequestTimeout               the deadline passed
    ├── RequestCancelled             the caller gave it up
    └── ServerError                  anything else; the server's log says more
        └── StreamEndedEarly         the music ended before its length

The server sends `code: message`; `from_wire` turns that back into the same class on the client. What a request holds
may be of any size, so messages show it short (`checks.quote`), and none is longer than `MAX_MESSAGE`.
"""

from __future__ import annotations

import re

from attune_client.protocol.foreign_text import without_internals

__all__ = [
    "MAX_MESSAGE",
    "AttuneError",
    "AudioTooLong",
    "EmptyAudio",
    "InvalidAudio",
    "InvalidOption",
    "InvalidRequest",
    "NoSpeech",
    "NonFiniteAudio",
    "RequestCancelled",
    "RequestTimeout",
    "ServerBusy",
    "ServerError",
    "ServerUnavailable",
    "ServerUnreachable",
    "SilentAudio",
    "StreamEndedEarly",
    "TruncatedAudio",
    "UnreadableAudio",
    "UnreadableFile",
    "UnsupportedLanguage",
    "from_wire",
]

MAX_MESSAGE = 2_000
"""Longest message that crosses the wire, in characters."""


class AttuneError(Exception):
    """Base of every error that Attune raises on purpose; `code` names it on the wire."""

    code = "error"

    def to_wire(self) -> str:
        """`code: message`, the form in which a server sends it; a message that is too long loses its end."""
        message = str(self)
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE - 1]}…"
        return f"{self.code}: {message}"


class InvalidRequest(AttuneError):
    """The request is at fault; the same request will fail again."""

    code = "invalid_request"


class InvalidAudio(InvalidRequest):
    """The recording cannot be used."""

    code = "invalid_audio"


class UnreadableFile(InvalidAudio):
    """The recording's file is missing, or the client may not read it."""

    code = "unreadable_file"


class EmptyAudio(InvalidAudio):
    """The file has no bytes or no samples."""

    code = "empty_audio"


class UnreadableAudio(InvalidAudio):
    """The file is no recording, or not one that the server can decode."""

    code = "unreadable_audio"


class TruncatedAudio(InvalidAudio):
    """The file ends before its header says that it does."""

    code = "truncated_audio"


class NonFiniteAudio(InvalidAudio):
    """Some samples are NaN, infinite, or beyond anything that a recording holds."""

    code = "non_finite_audio"


class AudioTooLong(InvalidAudio):
    """The recording is longer, or has more samples, than the server accepts."""

    code = "audio_too_long"


class SilentAudio(InvalidAudio):
    """The recording is silent."""

    code = "silent_audio"


class NoSpeech(InvalidAudio):
    """No speech was found in the recording."""

    code = "no_speech"


class UnsupportedLanguage(InvalidAudio):
    """The recording is in another language than English."""

    code = "unsupported_language"


class InvalidOption(InvalidRequest):
    """An option is outside its range, or names something that does not exist."""

    code = "invalid_option"


class ServerUnavailable(AttuneError):
    """No server answers, or it is not ready."""

    code = "server_unavailable"


class ServerUnreachable(ServerUnavailable):
    """There is no connection to a server, or it was lost before the answer was complete."""

    code = "server_unreachable"


class ServerBusy(ServerUnavailable):
    """The server has as much to do as it takes on.

    `retry_after_s` is put at the end of the message, where it also crosses the wire.
    """

    code = "server_busy"

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message if retry_after_s is None else f"{message}; try again in {retry_after_s} s")

    @property
    def retry_after_s(self) -> int | None:
        """When to try again, in seconds from now, as the server estimates it; None where it said nothing."""
        found = _RETRY_AFTER.search(str(self))
        return int(found[1]) if found else None


_RETRY_AFTER = re.compile(r"; try again in (\d+) s$")


class RequestTimeout(AttuneError):
    """The deadline passed before the answer came."""

    code = "request_timeout"


class RequestCancelled(AttuneError):
    """The caller gave the request up."""

    code = "request_cancelled"


class ServerError(AttuneError):
    """The server failed; its log has the details."""

    code = "server_error"


class StreamEndedEarly(ServerError):
    """The music ended before its length; a client knows how many seconds came, and how many were due."""

    code = "stream_ended_early"

    def __init__(self, message: str, *, received_s: float | None = None, expected_s: float | None = None) -> None:
        super().__init__(message)
        self.received_s = received_s
        self.expected_s = expected_s


def _tree(root: type[AttuneError]) -> dict[str, type[AttuneError]]:
    classes = {root.code: root}
    for child in root.__subclasses__():
        classes |= _tree(child)
    return classes


_BY_CODE = {code: kind for code, kind in _tree(AttuneError).items() if kind is not AttuneError}
_CODE = re.compile(rf"\b({'|'.join(_BY_CODE)}): ")


def from_wire(text: str) -> AttuneError:
    """The error that `to_wire` wrote; text of any other form becomes a `ServerError`.

    The server prefixes the messages of models that other models call, so the code may stand anywhere in the text.
    """
    found = _CODE.search(text)
    return _BY_CODE[found[1]](text[found.end() :]) if found else ServerError(without_internals(text))
