"""Alerts and dashboard read what is measured, and Prometheus takes them: `pytest tests/unit/test_observability.py`.

promtool (Debian's package prometheus) runs the alerts' own tests where it is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from attune_client.protocol.errors import AttuneError
from attune_ensemble.music.musicgen.statistics import METRICS as MUSICGEN_METRICS
from attune_ensemble.serving.supervisor.metrics import METRICS
from tests.conftest import ROOT

OBSERVED = ROOT / "docker/observability"
DASHBOARD = OBSERVED / "grafana/dashboards/attune.json"
RULES = OBSERVED / "rules.yaml"
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())

# Triton's own (its docs/user_guide/metrics.md). tests/integration/test_metrics.py asks the running server for these.
TRITONS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_pending_request_count",
    "nv_cpu_utilization",
    "nv_cpu_memory_total_bytes",
    "nv_cpu_memory_used_bytes",
}
TRITONS_OF_A_GPU = {
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
}

GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
PANELS = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Title and expression of every query of the dashboard."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def promtool(*arguments: str, text: str | None = None) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", [("check", "config", "prometheus.yaml"), ("test", "rules", "rules_test.yaml")])
def test_prometheus_takes_its_files_and_every_alert_fires_on_what_it_is_for(words):
    promtool(*words[:-1], str(OBSERVED / words[-1]))


def test_every_alert_has_a_test_that_it_fires():
    cases = yaml.safe_load((OBSERVED / "rules_test.yaml").read_text())["tests"]
    fired = {test["alertname"] for case in cases for test in case["alert_rule_test"] if test["exp_alerts"]}
    assert fired == ALERTS.keys()


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m").replace("$instance", ".*")}
        for number, (_, expression) in enumerate(queries())
    ]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "queries.yaml"))


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:attune|nv|musicgen)_\w+", expression))


def declared() -> set[str]:
    """Every name of a sample that some part of Attune declares, or Triton."""
    parts = ("_bucket", "_sum", "_count")
    ours = {name + part for name, (kind, _) in METRICS.items() for part in (parts if kind == "histogram" else ("",))}
    return ours | set(MUSICGEN_METRICS) | TRITONS | TRITONS_OF_A_GPU


@pytest.mark.parametrize(
    ("where", "expression"), [*queries(), *((name, rule["expr"]) for name, rule in ALERTS.items())]
)
def test_whatever_is_shown_or_alerted_on_is_measured(where, expression):
    names = names_in(expression)
    assert names or where in ("AttuneDown", "AttuneAbsent")
    assert names <= declared()


def test_a_name_that_nobody_declares_would_be_found():
    assert not names_in("rate(attune_guard_first_audio_secs_bucket[1m])") <= declared()


def test_what_is_declared_is_shown_too():
    """All but what the panels show the rest of."""
    shown = set().union(*(names_in(expression) for _, expression in queries()))
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in shown if name.startswith("attune")}
    assert METRICS.keys() - families <= {"attune_server_up", "attune_model_ready"}


def test_alerts_look_at_codes_that_there_are():
    codes = {kind.code for kind in every_error(AttuneError)} | {"answered", "cancelled"}
    for where, expression in [*queries(), *((name, rule["expr"]) for name, rule in ALERTS.items())]:
        for pattern in re.findall(r'outcome!?=~?"([^"]*)"', expression):
            assert set(pattern.split("|")) <= codes, where


def every_error(kind: type[AttuneError]) -> Iterator[type[AttuneError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from every_error(below)


def test_the_dashboard_is_laid_out_without_overlap():
    taken = set()
    ids = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(ids) == len(set(ids))
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells


def test_grafana_finds_the_data_and_the_dashboard():
    provisioning = OBSERVED / "grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/attune.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in COMPOSE["services"]
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {source["uid"]}
    [provider] = yaml.safe_load((provisioning / "dashboards/attune.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    assert mounts["./observability/grafana/dashboards"] == provider["options"]["path"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"


def test_every_alert_is_explained():
    text = (OBSERVED / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == ALERTS.keys()
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= rule["annotations"].keys()
