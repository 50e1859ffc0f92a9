"""Every time constant of the supervisor."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Times"]


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds, if nothing else is said.

    Processes are looked at every `look_s`; one that is stopped (SIGSTOP) for `stopped_s` is ended, since Triton aborts
    when it goes on. A model that has answered nothing for `idle_s` is asked a tiny question every `idle_s`, and is
    taken for dead where it does not answer within `answer_s` and answers nothing else in that time either.

    A model has `warm_s` for its first inference, and `load_s` to be unloaded and loaded. It is brought back at once,
    and later each time that it dies again: the wait begins with `first_wait_s`, doubles up to `longest_wait_s`, and is
    forgotten after `forget_s`. A model that did not come back `model_attempts` times in a row takes the server with it.
    A server that ends is started again in the same way, at most `server_attempts` times within `forget_s`.

    `notice_s`: how long new requests are still taken after the signal to stop, while it says that it is not ready.
    `drain_s`: how long requests in flight may go on after that. `unload_s`: how long the server may take
    to end then. `alive_s`: a supervisor that has not looked for so long does not work any more.
    """

    look_s: float = 0.2
    stopped_s: float = 0.5
    idle_s: float = 15.0
    answer_s: float = 30.0
    warm_s: float = 120.0
    load_s: float = 120.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    forget_s: float = 600.0
    model_attempts: int = 3
    server_attempts: int = 5
    notice_s: float = 0.0
    drain_s: float = 30.0
    unload_s: int = 5
    alive_s: float = 10.0
