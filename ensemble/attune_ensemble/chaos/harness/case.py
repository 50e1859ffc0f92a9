"""What a row is, and what it is handed."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import soundfile as sf

from attune_client.client import AttuneClient
from attune_ensemble.chaos.harness.calls import Call, Ended, Outcome, Tally, attempt, describe
from attune_ensemble.chaos.harness.processes import is_alive
from attune_ensemble.chaos.harness.relay import relayed
from attune_ensemble.chaos.harness.served import Options, Served
from attune_ensemble.chaos.harness.swarm import Swarm
from attune_ensemble.chaos.harness.threads import Load, Started, at_once, open_loop

__all__ = ["GONE_S", "PATIENCE_S", "Case", "Failed", "Row", "Settings", "Skipped", "Workshop"]

PATIENCE_S = 30.0
"""How long a call may hear nothing, unless a row says otherwise; no call of a row takes nearly so long by itself."""

GONE_S = 10.0
"""How long what belongs to a server may stay after its end."""

_CLIP_S = 2.5
_AGAIN_S = 0.25


class Skipped(Exception):
    """The row cannot be tried here; the message says why."""


class Failed(Exception):
    """The row cannot go on."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Args:
        name: what `--only` takes.
        what: what is done, in a few words.
        run: does it.
        limit_s: after so many seconds it has failed, whatever it is doing.
        quick_limit_s: the same for `--quick`; None where the row is not one of the quick ones.
        alone: it runs only when it is named.
    """

    name: str
    what: str
    run: Callable[[Case], None]
    limit_s: float
    quick_limit_s: float | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """What all rows run with: the repository, a recording, where logs are kept, how a server is started."""

    repository: Path
    recording: Path
    logs: Path
    quick: bool = False
    options: Options | None = None


class Workshop:
    """The server that rows share, and the count of those that were started; a context manager that ends it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._shared: Served | None = None
        self._started = 0

    @cached_property
    def clip(self) -> bytes:
        """The first seconds of the recording, as WAV."""
        samples, rate = sf.read(self.settings.recording, dtype="int16")
        file = io.BytesIO()
        sf.write(file, samples[: int(_CLIP_S * rate)], rate, format="WAV")
        return file.getvalue()

    def options(self, row: str) -> Options:
        """How the next server of a row is started."""
        self._started += 1
        log_file = self.settings.logs / f"{self._started:02d}-{row}.log"
        if self.settings.options is not None:
            return replace(self.settings.options, log_file=log_file)
        return Options(self.settings.repository, log_file)

    def shared(self, row: str) -> Served:
        """The shared server; a new one where there is none, or it has ended."""
        if self._shared is not None and not self._shared.is_running:
            self.drop()
        if self._shared is None:
            served = Served(self.options(row))
            self._shared = served
            try:
                served.start()
            except BaseException:
                self.drop()
                raise
        return self._shared

    @property
    def has_shared(self) -> bool:
        """Whether there is a shared server now."""
        return self._shared is not None

    def drop(self, *, by_force: bool = False) -> None:
        """End the shared server, in order or by force; the next row gets a new one."""
        shared, self._shared = self._shared, None
        if shared is not None and by_force:
            shared.remove()
        elif shared is not None:
            shared.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop(by_force=error is not None)


class Case:
    """What one row works with and what it finds; its methods may be called until its time is over."""

    def __init__(self, row: Row, workshop: Workshop) -> None:
        self.row, self._workshop = row, workshop
        self.quick = workshop.settings.quick
        self.settings = workshop.settings
        self.tally = Tally()
        self.failures: list[str] = []
        self.notes: list[str] = []
        self.recoveries_s: list[float] = []
        self.left: list[str] = []
        self._own: list[Served] = []
        self._looked_at: list[Served] = []
        self._over = threading.Event()
        self._rest = contextlib.ExitStack()

    # --- what is asked ---

    @property
    def clip(self) -> bytes:
        """A recording of 2.5 s of speech, WAV."""
        return self._workshop.clip

    def ask(self, server: Served, call: Call, patience_s: float = PATIENCE_S, source: str | None = None) -> Ended:
        """Make one call, over a connection of its own, and put it down; `source` is the address that it comes from."""
        with relayed(server.url, source) as url, AttuneClient(url, timeout_s=patience_s) as client:
            ended = attempt(call, client)
        self.tally.add(ended)
        return ended

    def at_once(self, server: Served, calls: Sequence[Call], patience_s: float = PATIENCE_S) -> list[Ended]:
        """Make all calls at once, each in a thread and all over one connection; put each down."""
        with AttuneClient(server.url, timeout_s=patience_s) as client:
            return at_once(calls, client, patience_s, self.tally.add)

    def begin(self, server: Served, calls: Sequence[Call], patience_s: float = PATIENCE_S) -> Started:
        """Begin all calls at once, over one connection, and do not wait for them: that is its `wait`."""
        client = self._rest.enter_context(AttuneClient(server.url, timeout_s=patience_s))
        return Started(calls, client, patience_s, self.tally.add)

    def open_loop(
        self, server: Served, *calls: Call, rate_hz: float, seconds: float, patience_s: float = PATIENCE_S
    ) -> list[Ended]:
        """Make calls at a fixed rate for so long, whether they are answered or not, over one connection."""
        with AttuneClient(server.url, timeout_s=patience_s) as client:
            return open_loop(calls, client, patience_s, rate_hz=rate_hz, seconds=seconds, tell=self.tally.add)

    @contextlib.contextmanager
    def load(
        self, server: Served, calls: Sequence[Call], threads: int = 4, patience_s: float = PATIENCE_S
    ) -> Iterator[Load]:
        """Threads that go on asking while the `with` block lasts; put each call down."""
        with (
            AttuneClient(server.url, timeout_s=patience_s) as client,
            Load(calls, client, patience_s, self.tally.add, threads) as load,
        ):
            yield load

    def swarm(
        self,
        server: Served,
        clients: Sequence[Sequence[Call]],
        patience_s: float = PATIENCE_S,
        *,
        apart: bool = False,
    ) -> Swarm:
        """Clients in processes of their own, each with all its calls at once; put each down that is waited for.

        Where they are `apart` each has an address of its own; else they share what one client may have.
        """
        return Swarm(server.url, clients, patience_s, self.tally.add, apart=apart)

    # --- servers ---

    def server(self) -> Served:
        """The server that rows share: ready now, and still to serve when the row is over."""
        self.check_time()
        return self._workshop.shared(self.row.name)

    def options(self, **changes: object) -> Options:
        """How a server of this row's own is started, with changes."""
        return replace(self._workshop.options(self.row.name), **changes)  # type: ignore[arg-type]

    def fresh_server(self, *, start: bool = True, **changes: object) -> Served:
        """A server of this row's own, with other options, started; it is ended after the row."""
        self.check_time()
        served = Served(self.options(**changes))
        self._own.append(served)
        return served.start() if start else served

    @contextlib.contextmanager
    def unchanged(self, server: Served) -> Iterator[None]:
        """Fail if a process that serves ends, or another takes its place, while the `with` block lasts."""
        before, at_s = server.serving(), time.monotonic()
        self.require(before, "there is no server")
        yield
        ended = [name for name, process in before.items() if not is_alive(process)]
        self.expect(not ended, f"processes of the server ended: {', '.join(ended)}")
        died = [event for name in ("model_died", "server_died") for event in server.events(name, at_s)]
        self.expect(not died, f"the server told of {len(died)} deaths: {[dict(event.fields) for event in died][:3]}")

    # --- what must hold ---

    def expect(self, holds: object, otherwise: str) -> bool:
        """Where it does not hold, the row has failed, and goes on."""
        if not holds:
            self.failures.append(otherwise)
        return bool(holds)

    def require(self, holds: object, otherwise: str) -> None:
        """Where it does not hold, the row has failed, and ends here."""
        if not holds:
            raise Failed(otherwise)

    def note(self, text: str) -> None:
        """Put down what is worth reading, beside what passes or fails."""
        self.notes.append(text)

    def all_answered(self, ended: Sequence[Ended], what: str) -> bool:
        """Expect that each of these calls was answered."""
        other = [one for one in ended if one.outcome != Outcome.ANSWERED]
        return self.expect(not other, f"{what}: {len(other)} of {len(ended)} not answered: {describe(other, 2)}")

    def recovers(self, server: Served, call: Call, *, within_s: float, since_s: float | None = None) -> float | None:
        """Ask again and again until it is answered: seconds since `since_s`, or from now; a bar.

        After twice the bar it is given up, and None returned.
        """
        begun_s = time.monotonic() if since_s is None else since_s
        last = None
        while time.monotonic() - begun_s < 2 * within_s:
            self.check_time()
            last = self.ask(server, call, patience_s=max(2.0, within_s))
            seconds = time.monotonic() - begun_s
            if last.outcome == Outcome.ANSWERED:
                self.recoveries_s.append(seconds)
                self.expect(seconds <= within_s, f"{call.name} served again after {seconds:.1f} s, not {within_s:g}")
                return seconds
            time.sleep(_AGAIN_S)
        self.failures.append(f"{call.name} not served again within {2 * within_s:g} s: {last}")
        return None

    def leaves_nothing(self, server: Served) -> None:
        """Expect that a server that has ended has left nothing behind: process, port, shared memory, folder."""
        self._looked_at.append(server)
        self.left += server.left_behind(GONE_S)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the row's time."""
        self._over.wait(seconds)
        self.check_time()

    # --- its time, for whoever runs it ---

    def check_time(self) -> None:
        """Raise if the row's time is over."""
        if self._over.is_set():
            raise Failed("its time is over")

    def end(self, *, over: bool) -> None:
        """End the row's own servers and look for what they left; `over`: its time was over while it ran."""
        if over:
            self._over.set()
        self._rest.close()
        for server in self._own:
            if not over:
                if server.is_running:
                    server.terminate()
                if server not in self._looked_at:
                    self.leaves_nothing(server)
            server.remove()
