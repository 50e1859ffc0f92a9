"""The rows of `attune chaos` on the real server: `pytest tests/integration/test_chaos.py`; all of them, as they are
run without `--quick`: `pytest -m slow tests/integration/test_chaos.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attune_ensemble.chaos.catalogue import ROWS
from attune_ensemble.chaos.harness.case import Row, Settings, Workshop
from attune_ensemble.chaos.harness.report import details, table_line
from attune_ensemble.chaos.harness.run import run
from tests.conftest import ROOT, SAMPLES

pytestmark = pytest.mark.server

QUICK = [row for row in ROWS if row.quick_limit_s is not None]
LONGEST_S = 1800.0 + 300.0


@pytest.fixture(scope="module", params=[True, False])
def quick(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, quick: bool) -> Iterator[Workshop]:
    """One server for all rows that share it."""
    logs = tmp_path_factory.mktemp("chaos")
    workshop = Workshop(Settings(ROOT / "model_repository", SAMPLES[1], logs, quick=quick))
    yield workshop
    workshop.drop()


def check(row: Row, workshop: Workshop) -> None:
    result = run(row, workshop)
    print(table_line(result))
    if result.skipped:
        pytest.skip(result.skipped)
    assert result.passed, "\n".join([table_line(result), *details(result)])


@pytest.mark.parametrize("quick", [True], indirect=True)
@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_a_quick_row(row, workshop):
    check(row, workshop)


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S)
@pytest.mark.parametrize("quick", [False], indirect=True)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row(row, workshop):
    check(row, workshop)
