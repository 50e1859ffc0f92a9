"""Runs rows, each within its limit, and tells what came of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attune_ensemble.chaos.harness.calls import Outcome, Prompt, describe
from attune_ensemble.chaos.harness.case import Case, Failed, Row, Skipped, Workshop
from attune_ensemble.chaos.harness.served import DidNotStart

__all__ = ["Result", "run", "run_all"]

_UNWIND_S = 3.0
"""How long a row may take to give back what it has (what it mounted, say), when the whole run is ended."""

_AFTERWARDS_S = 15.0
"""How long the shared server may need, after a row, until it answers a good call."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one row; `skipped` says why it could not be tried."""

    row: str
    what: str
    requests: int
    answered: int
    errors: int
    lost: int
    hung: int
    recovery_s: float | None
    left: tuple[str, ...]
    passed: bool
    seconds: float
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str = ""


def run_all(rows: Iterable[Row], workshop: Workshop) -> Iterator[Result]:
    """Run rows one after the other."""
    for row in rows:
        yield run(row, workshop)


def run(row: Row, workshop: Workshop) -> Result:
    """Run one row. One that is not over at its limit has failed: its servers are ended, and it is left to itself."""
    case, skipped, started_s = Case(row, workshop), [""], time.monotonic()
    limit_s = row.quick_limit_s if workshop.settings.quick and row.quick_limit_s is not None else row.limit_s
    # In a thread, for a row that hangs must not hold the others; a daemon, and the program can end.
    thread = threading.Thread(target=_attempt, args=(case, skipped), name=f"chaos-{row.name}", daemon=True)
    thread.start()
    try:
        thread.join(limit_s)
    except BaseException:  # Ctrl-C: nothing that was started may outlive this program
        case.end(over=True)
        workshop.drop(by_force=True)
        thread.join(_UNWIND_S)
        raise
    over = thread.is_alive()
    if over:
        case.failures.append(f"not over after its limit of {limit_s:g} s")
        workshop.drop()
    case.end(over=over)
    if not over and workshop.has_shared:
        _serves_afterwards(case, workshop)
    return _result(case, skipped[0], time.monotonic() - started_s)


def _attempt(case: Case, skipped: list[str]) -> None:
    try:
        case.row.run(case)
    except Skipped as why:
        skipped[0] = str(why)
    except (Failed, DidNotStart, LookupError) as error:
        case.failures.append(str(error))
    except Exception as error:  # a fault of the row is a failure of it, and the others go on
        case.failures.append(f"{type(error).__name__}: {error}")


def _serves_afterwards(case: Case, workshop: Workshop) -> None:
    server = workshop.shared(case.row.name)
    recoveries = len(case.recoveries_s)
    case.recovers(server, Prompt(name="a good call afterwards"), within_s=_AFTERWARDS_S)
    del case.recoveries_s[recoveries:]  # no recovery of this row's own
    if case.failures:
        workshop.drop()  # whatever is wrong with it, the next row begins with a new one


def _result(case: Case, skipped: str, seconds: float) -> Result:
    count, calls = case.tally.count(), case.tally.all()
    failures = [*case.failures]
    for outcome in (Outcome.LOST, Outcome.HUNG):
        if count[outcome]:
            failures.append(f"{outcome}: " + describe((one for one in calls if one.outcome == outcome), 3))
    kinds = Counter(one.error for one in calls if one.outcome == Outcome.ERROR)
    told = [f"clean errors: {', '.join(f'{number} {kind}' for kind, number in kinds.most_common())}"] if kinds else []
    return Result(
        row=case.row.name,
        what=case.row.what,
        requests=len(calls),
        answered=count[Outcome.ANSWERED],
        errors=count[Outcome.ERROR],
        lost=count[Outcome.LOST],
        hung=count[Outcome.HUNG],
        recovery_s=max(case.recoveries_s, default=None),
        left=tuple(case.left),
        passed=not failures and not case.left,
        seconds=seconds,
        failures=tuple(failures),
        notes=(*case.notes, *told),
        skipped=skipped,
    )
