"""The chart and what lies beside it, rendered by Helm's own library: `pytest tests/unit/test_chart.py`.

Nothing is compared with a picture of itself: what is tested is what an operator relies on.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from attune_client.protocol.bounds import MAX_MUSIC_S
from attune_client.protocol.profiles import PROFILES
from attune_ensemble.music.musicgen.statistics import METRICS as MUSICGEN_METRICS
from attune_ensemble.serving.launcher import server as server_module
from attune_ensemble.serving.launcher.ports import Ports
from attune_ensemble.serving.supervisor import commands
from attune_ensemble.serving.supervisor.health import _pages
from attune_ensemble.serving.supervisor.metrics import METRICS
from attune_ensemble.serving.supervisor.policy import Phase, Status
from attune_ensemble.serving.supervisor.times import Times
from tests.conftest import ROOT
from tests.envoy_process import CONFIGURATION, ENVOYS, needs_envoy, validate

helm = pytest.importorskip("helm_python", reason="needs the package helm-python-sdk (extra deploy)")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (extra deploy)")

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "attune"
KSERVE = DEPLOY / "kserve"
VERSIONS = ("1.30", "1.34", "1.37")
"""Of Kubernetes: the oldest that the chart takes, and newer ones."""

Document = dict[str, Any]
GATEWAY = {"enabled": True, "parentRefs": [{"name": "edge", "namespace": "gateways"}], "hostnames": ["music.example"]}

# What is rendered: values files, one on top of the other, and values beside them.
ARRANGEMENTS: dict[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "as it comes": ((), {}),
    "cpu": (("values-cpu.yaml",), {}),
    "gpu": (("values-gpu.yaml",), {}),
    "mig": (("values-gpu.yaml", "values-mig.yaml"), {}),
    "keda": (("values-cpu.yaml", "values-keda.yaml"), {}),
    "gpu with keda": (("values-gpu.yaml", "values-keda.yaml"), {}),
    "tensorrt": (("values-gpu.yaml",), {"profile": "tensorrt"}),
    "tls": (("values-cpu.yaml",), {"envoy": {"tls": {"enabled": True, "secretName": "attune-tls"}}}),
    "mutual tls": (("values-cpu.yaml",), {"envoy": {"tls": {"enabled": True, "secretName": "s", "mutual": True}}}),
    "a gateway": (("values-cpu.yaml",), {"gatewayRoute": GATEWAY, "envoy": {"enabled": False}}),
    "no scaling": (("values-cpu.yaml",), {"autoscaling": {"enabled": False}, "replicas": 3}),
    "a claim of its own": (("values-cpu.yaml",), {"models": {"source": "claim", "claim": {"create": True}}}),
    "from outside": (("values-cpu.yaml",), {"service": {"type": "LoadBalancer"}}),
}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Helm puts one file on top of another."""
    both = dict(below)
    for name, value in above.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return both


def render(*files: str, name: str = "demo", **values: Any) -> str:
    """What Helm makes of the chart with these values files and values, as one text."""
    chosen: dict[str, Any] = {}
    for file in files:
        chosen = merged(chosen, yaml.safe_load((CHART / file).read_text()))
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(chart.merge_values(merged(chosen, values)))
        made = chart.render(merged(chosen, values), name=name, namespace="music")
    return "\n---\n".join(text for path, text in sorted(made.items()) if path.endswith(".yaml"))


@cache
def rendered(arrangement: str) -> tuple[Document, ...]:
    files, values = ARRANGEMENTS[arrangement]
    return tuple(filter(None, yaml.safe_load_all(render(*files, **values))))


@pytest.fixture(params=ARRANGEMENTS)
def documents(request: pytest.FixtureRequest) -> tuple[Document, ...]:
    return rendered(request.param)


def of(documents: tuple[Document, ...], kind: str) -> list[Document]:
    return [each for each in documents if each["kind"] == kind]


def replica(documents: tuple[Document, ...]) -> Document:
    """The deployment of the replicas."""
    [found] = [each for each in of(documents, "Deployment") if component(each) == "replica"]
    return found


def component(deployment: Document) -> str:
    return str(deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"])


def pod_of(deployment: Document) -> Document:
    spec: Document = deployment["spec"]["template"]["spec"]
    return spec


def container_of(pod: Document) -> Document:
    [container] = pod["containers"]
    return dict(container)


def kserve() -> dict[str, Document]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(KSERVE.glob("*.yaml"))}


def runtime_pod() -> Document:
    """What KServe starts: the runtime's pod, with what the service adds to it."""
    runtime, service = kserve()["servingruntime"]["spec"], kserve()["inferenceservice"]["spec"]["predictor"]
    own = {name: runtime[name] for name in ("containers", "volumes")}
    return own | {name: service[name] for name in ("terminationGracePeriodSeconds", "automountServiceAccountToken")}


def all_pods() -> Iterator[tuple[str, Document]]:
    for arrangement in ARRANGEMENTS:
        for deployment in of(rendered(arrangement), "Deployment"):
            yield f"{arrangement}: {component(deployment)}", pod_of(deployment)
    yield "kserve", runtime_pod()


def replica_pods() -> Iterator[tuple[str, Document]]:
    return ((name, pod) for name, pod in all_pods() if not name.endswith("envoy"))


# It is well formed


def test_every_values_file_is_rendered():
    used = {file for files, _ in ARRANGEMENTS.values() for file in files}
    assert used == {path.name for path in CHART.glob("values-*.yaml")}


def test_helm_finds_nothing_to_say():
    found = helm.lint(str(CHART))
    assert not found["errors"]
    assert [each for each in found["messages"] if "icon" not in each["error"]] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_what_is_its_own(documents, version):
    own = [each for each in documents if "k8s.io" in each["apiVersion"] or "." not in each["apiVersion"]]
    for document in own:
        if document["kind"] != "GRPCRoute":
            kubernetes_validate.validate(document, version, strict=True)
    assert len(own) >= 8


def schema_of(kind: str) -> Document:
    every: Document = json.loads((ROOT / "tests" / "data" / "crds" / "specs.json").read_text())
    return {**every["properties"][kind], "definitions": every["definitions"]}


CUSTOM = {
    "GRPCRoute": "gateway.networking.k8s.io/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ServingRuntime": "serving.kserve.io/v1alpha1",
    "InferenceService": "serving.kserve.io/v1beta1",
}


@pytest.mark.parametrize("kind", CUSTOM)
def test_who_defines_the_others_takes_them(kind):
    found = [each for name in ARRANGEMENTS for each in rendered(name)] + list(kserve().values())
    chosen = [each for each in found if each["kind"] == kind]
    assert chosen
    for document in chosen:
        assert document["apiVersion"] == CUSTOM[kind]
        jsonschema.validate(document["spec"], schema_of(kind))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**chosen[0]["spec"], "unheardOf": 1}, schema_of(kind))


def test_kubernetes_takes_kserves_pod():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "attune"}, "spec": runtime_pod()}
    kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", ["attune", "a", "a-name-that-is-as-long-as-a-release-may-be-called-53"])
def test_names_stay_within_their_bounds(name):
    documents = list(filter(None, yaml.safe_load_all(render("values-cpu.yaml", name=name))))
    names = [each["metadata"]["name"] for each in documents]
    assert max(map(len, names)) <= 63
    assert len({(each["kind"], each["metadata"]["name"]) for each in documents}) == len(documents)


WRONG: dict[str, Mapping[str, Any]] = {
    "an option that there is not": {"replicaCount": 3},
    "a profile that there is not": {"profile": "cpu"},
    "a profile of a GPU without one": {"profile": "gpu"},
    "a GPU that nobody uses": {"gpu": {"enabled": True}},
    "two that scale": {"keda": {"enabled": True}},
    "TLS without certificates": {"envoy": {"tls": {"enabled": True}}},
    "a claim without a name": {"models": {"source": "claim"}},
    "no memory": {"resources": {"requests": {"memory": "lots"}}},
    "a share above all": {"server": {"clientShare": 1.5}},
    "nobody may ask": {"networkPolicy": {"clients": []}},
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG.keys())
def test_values_that_cannot_be_right_are_refused(values):
    with pytest.raises(helm.HelmError):
        render(**values)


def test_the_profiles_are_those_that_there_are():
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["profile"]["enum"]) == {profile.name for profile in PROFILES.values()}


# Who it runs as, and what it may do


def test_nothing_runs_as_root_or_may_become_it():
    for name, pod in all_pods():
        container = container_of(pod)
        security = {**pod.get("securityContext", {}), **container["securityContext"]}
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == 10001, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name


def test_only_tmp_and_shared_memory_can_be_written():
    for name, pod in all_pods():
        volumes = {each["name"]: each for each in pod["volumes"]}
        mounts = container_of(pod)["volumeMounts"]
        writable = {each["mountPath"]: volumes[each["name"]] for each in mounts if not each.get("readOnly")}
        assert set(writable) == {"/tmp", "/dev/shm"}, name
        assert writable["/dev/shm"]["emptyDir"]["medium"] == "Memory", name
        assert all(volume["emptyDir"]["sizeLimit"] for volume in writable.values()), name


@pytest.mark.parametrize("arrangement", ["gpu", "mig", "a claim of its own"])
def test_models_of_a_claim_are_read_only_and_where_the_server_looks(arrangement):
    pod = pod_of(replica(rendered(arrangement)))
    [claim] = [each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == "models"]
    [mount] = [each for each in container_of(pod)["volumeMounts"] if each["name"] == "models"]
    assert claim["readOnly"] is mount["readOnly"] is True
    assert arguments_of(container_of(pod))["repository"] == Path(mount["mountPath"])
    made = [each["metadata"]["name"] for each in of(rendered(arrangement), "PersistentVolumeClaim")]
    assert made == ([claim["claimName"]] if arrangement == "a claim of its own" else [])


def test_resources_are_asked_for_and_memory_is_bounded():
    for name, pod in all_pods():
        resources = container_of(pod)["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys(), name
        assert bytes_of(resources["requests"]["memory"]) <= bytes_of(resources["limits"]["memory"]), name
        shared = [each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if each["name"] == "shared-memory"]
        assert bytes_of(shared[0]) < bytes_of(resources["requests"]["memory"]), f"{name}: it counts as memory"


def bytes_of(quantity: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(Mi|Gi)", quantity).groups()
    return float(number) * {"Mi": 2**20, "Gi": 2**30}[unit]


@pytest.mark.parametrize(
    ("arrangement", "resource"),
    [("gpu", "nvidia.com/gpu"), ("mig", "nvidia.com/mig-3g.40gb"), ("tensorrt", "nvidia.com/gpu"), ("cpu", None)],
)
def test_a_gpu_is_asked_for_where_the_profile_needs_one(arrangement, resource):
    resources = container_of(pod_of(replica(rendered(arrangement))))["resources"]
    found = {name for part in resources.values() for name in part if name.startswith("nvidia")}
    assert found == ({resource} if resource else set())
    if resource:
        assert resources["requests"][resource] == resources["limits"][resource] == 1


# It starts, serves and stops


def arguments_of(container: Document) -> dict[str, Any]:
    """What `attune serve` makes of the arguments; fails where it would refuse them."""
    context = commands.serve.make_context("attune serve", list(container["args"]))
    return dict(context.params)


def test_the_server_takes_the_arguments():
    for name, pod in replica_pods():
        arguments = arguments_of(container_of(pod))
        assert arguments["command"] == (), name
        assert arguments["profile"] in {profile.name for profile in PROFILES.values()}, name


def test_the_word_of_envoy_for_who_calls_is_heeded_and_no_other():
    for arrangement in ARRANGEMENTS:
        deployments = {component(each): pod_of(each) for each in of(rendered(arrangement), "Deployment")}
        arguments = arguments_of(container_of(deployments["replica"]))
        assert arguments["trust_client_metadata"] == ("envoy" in deployments), arrangement
    assert arguments_of(container_of(runtime_pod()))["trust_client_metadata"], "behind Envoy, says deploy/README.md"


def test_it_is_waited_for_until_the_longest_stream_has_ended():
    for name, pod in replica_pods():
        container = container_of(pod)
        arguments = arguments_of(container)
        assert arguments["drain_seconds"] >= MAX_MUSIC_S + 30, f"{name}: as long as it is listened to, and a pause"
        before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"] + arguments["notice_seconds"]
        after_s = Times().unload_s + server_module._KILL_GRACE_S + server_module._UNLOAD_S
        assert pod["terminationGracePeriodSeconds"] >= before_s + arguments["drain_seconds"] + after_s, name


def test_envoy_is_waited_for_as_well():
    for name, pod in all_pods():
        if name.endswith("envoy"):
            asleep_s = container_of(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
            renewed_s = listener_options()["max_connection_duration"].removesuffix("s")
            assert asleep_s >= MAX_MUSIC_S + int(renewed_s), name
            assert pod["terminationGracePeriodSeconds"] > asleep_s, name


def listener_options() -> Document:
    listeners = yaml.safe_load(CONFIGURATION.read_text())["static_resources"]["listeners"]
    [found] = [each for each in listeners if each["name"] == "requests"]
    options: Document = found["filter_chains"][0]["filters"][0]["typed_config"]["common_http_protocol_options"]
    return options


def test_a_longer_stream_makes_everything_wait_longer():
    pods = [
        pod_of(replica(tuple(filter(None, yaml.safe_load_all(render(stopping={"longestStreamSeconds": seconds}))))))
        for seconds in (600, 1200)
    ]
    assert pods[1]["terminationGracePeriodSeconds"] - pods[0]["terminationGracePeriodSeconds"] == 600
    drains = [arguments_of(container_of(pod))["drain_seconds"] for pod in pods]
    assert drains[1] - drains[0] == 600


def test_the_notice_is_long_enough_for_envoy_to_see_it():
    clusters = yaml.safe_load(CONFIGURATION.read_text())["static_resources"]["clusters"]
    for cluster in clusters:
        for check in cluster.get("health_checks", ()):
            period_s = max(int(check[name].removesuffix("s")) for name in ("interval", "no_traffic_interval"))
            for name, pod in replica_pods():
                assert arguments_of(container_of(pod))["notice_seconds"] >= 2 * period_s, name


def test_the_start_may_take_as_long_as_loading_and_warming_up():
    for name, pod in replica_pods():
        probe = container_of(pod)["startupProbe"]
        allowed_s = probe["periodSeconds"] * probe["failureThreshold"]
        assert allowed_s >= server_module._MODEL_LOAD_S + Times().warm_s, name


def test_an_update_has_failed_only_when_it_takes_longer_than_a_stop_and_a_start(documents):
    deployment = replica(documents)
    pod = pod_of(deployment)
    probe = container_of(pod)["startupProbe"]
    start_s = probe["periodSeconds"] * probe["failureThreshold"] + deployment["spec"]["minReadySeconds"]
    stop_s = pod["terminationGracePeriodSeconds"]
    assert deployment["spec"]["progressDeadlineSeconds"] >= stop_s + start_s


class Starting:
    """A supervisor that works, and whose models do not answer yet."""

    status = Status(Phase.WARMING, "starting: the models are being warmed up")

    def is_alive(self) -> bool:
        return True

    def models(self) -> tuple[str, ...]:
        return ()

    def metrics(self) -> str:
        return ""


def test_probes_ask_pages_that_there_are_and_that_tell_the_truth():
    pages = _pages(Starting())
    expected = {"startupProbe": 503, "readinessProbe": 503, "livenessProbe": 200}
    for name, pod in replica_pods():
        container = container_of(pod)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        for probe, status in expected.items():
            asked = container[probe]["httpGet"]
            assert pages[asked["path"]]().status == status, f"{name}: {probe}"
            assert ports.get(asked["port"], asked["port"]) == Ports().http, f"{name}: {probe}"
        assert Ports().grpc in ports.values(), name


def test_a_replica_is_given_up_before_it_is_missed():
    """Not ready at the first no; restarted only after its supervisor had the time to notice by itself."""
    for name, pod in replica_pods():
        container = container_of(pod)
        assert container["readinessProbe"]["failureThreshold"] == 1, name
        liveness = container["livenessProbe"]
        assert liveness["periodSeconds"] * liveness["failureThreshold"] > Times().alive_s, name


# What belongs together finds each other


def selected(documents: tuple[Document, ...], labels: Mapping[str, str]) -> list[Document]:
    """The deployments whose pods have these labels."""
    found = []
    for deployment in of(documents, "Deployment"):
        own = deployment["spec"]["template"]["metadata"]["labels"]
        if labels.items() <= own.items():
            found.append(deployment)
    return found


def test_every_selector_finds_one_deployment(documents):
    selectors = [each["spec"]["selector"] for each in of(documents, "Service")]
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
        selectors += [each["spec"]["selector"]["matchLabels"] for each in of(documents, kind)]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of(documents, "NetworkPolicy")]
    assert len(selectors) >= 6
    for labels in selectors:
        assert len(selected(documents, labels)) == 1, labels


def test_every_port_that_is_named_is_there(documents):
    for service in of(documents, "Service"):
        [target] = selected(documents, service["spec"]["selector"])
        named = {each["name"] for each in container_of(pod_of(target))["ports"]}
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= named
    for monitor in of(documents, "PodMonitor"):
        [target] = selected(documents, monitor["spec"]["selector"]["matchLabels"])
        named = {each["name"] for each in container_of(pod_of(target))["ports"]}
        assert {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]} <= named


def test_clients_reach_envoy_where_there_is_one_and_it_reaches_the_replicas(documents):
    [service] = [each for each in of(documents, "Service") if each["metadata"]["name"] == "demo-attune"]
    [target] = selected(documents, service["spec"]["selector"])
    maps = of(documents, "ConfigMap")
    assert component(target) == ("envoy" if maps else "replica")
    for each in maps:
        configuration = yaml.safe_load(each["data"]["envoy.yaml"])
        clusters = configuration["static_resources"]["clusters"]
        addresses = {json.dumps(cluster["load_assignment"]["endpoints"]) for cluster in clusters[:2]}
        [endpoints] = map(json.loads, addresses)
        endpoint = endpoints[0]["lb_endpoints"][0]["endpoint"]
        address = endpoint["address"]["socket_address"]
        [behind] = [one for one in of(documents, "Service") if one["metadata"]["name"] == address["address"]]
        assert behind["spec"]["clusterIP"] == "None", "or the name has one address for all of them"
        ports = {one["name"]: one["port"] for one in behind["spec"]["ports"]}
        assert address["port_value"] == ports["grpc"] == Ports().grpc
        assert endpoint["health_check_config"]["port_value"] == ports["health"] == Ports().http


@needs_envoy
@pytest.mark.parametrize("arrangement", ["cpu", "tls", "mutual tls"])
def test_envoy_takes_what_the_chart_makes(arrangement, tmp_path):
    [found] = of(rendered(arrangement), "ConfigMap")
    for name, text in found["data"].items():
        (tmp_path / name).write_text(text.replace("/etc/envoy/", f"{tmp_path}/").replace("/etc/attune-tls", "/etc"))
    assert validate(tmp_path / "envoy.yaml") == ""
    mutual = "require_client_certificate: true" in found["data"]["envoy.yaml"]
    assert mutual == (arrangement == "mutual tls")
    assert ("trusted_ca" in found["data"].get("tls-clients.yaml", "")) == mutual


def test_the_secret_lies_where_envoy_looks():
    for arrangement in ("tls", "mutual tls"):
        [envoy] = [each for each in of(rendered(arrangement), "Deployment") if component(each) == "envoy"]
        mounts = {each["mountPath"] for each in container_of(pod_of(envoy))["volumeMounts"]}
        [found] = of(rendered(arrangement), "ConfigMap")
        folders = set(re.findall(r"filename: (/\S+)/[\w.]+\}", found["data"]["tls-server.yaml"]))
        assert folders == {"/etc/attune-tls"}
        assert folders <= mounts


# Who may speak to whom


def test_every_pod_has_a_network_policy(documents):
    for deployment in of(documents, "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        policies = [
            each
            for each in of(documents, "NetworkPolicy")
            if each["spec"]["podSelector"]["matchLabels"].items() <= labels
        ]
        assert len(policies) == 1
        assert set(policies[0]["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        assert all(rule["from"] for rule in policies[0]["spec"]["ingress"]), "an empty one is everybody"


def policy_of(documents: tuple[Document, ...], name: str) -> Document:
    [found] = [each for each in of(documents, "NetworkPolicy") if each["metadata"]["name"] == name]
    spec: Document = found["spec"]
    return spec


def test_a_replica_calls_nobody_and_is_asked_by_envoy_alone():
    policy = policy_of(rendered("cpu"), "demo-attune")
    assert policy["egress"] == []
    requests = [rule for rule in policy["ingress"] if "grpc" in {port["port"] for port in rule["ports"]}]
    [rule] = requests
    [peer] = rule["from"]
    assert [component(each) for each in selected(rendered("cpu"), peer["podSelector"]["matchLabels"])] == ["envoy"]


def test_without_envoy_its_clients_are_those_that_were_named():
    documents = tuple(
        filter(
            None,
            yaml.safe_load_all(
                render(envoy={"enabled": False}, networkPolicy={"clients": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]})
            ),
        )
    )
    policy = policy_of(documents, "demo-attune")
    assert policy["ingress"][0]["from"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]


# It scales, and is watched


def test_one_thing_scales_and_the_deployment_leaves_it_to_that(documents):
    scaling = [*of(documents, "HorizontalPodAutoscaler"), *of(documents, "ScaledObject")]
    deployment = replica(documents)
    assert len(scaling) == ("replicas" not in deployment["spec"])
    for each in scaling:
        target = each["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])


MEASURED = {*METRICS, *MUSICGEN_METRICS}


def pod_metrics(documents: tuple[Document, ...]) -> dict[str, str]:
    metrics = [one for each in of(documents, "HorizontalPodAutoscaler") for one in each["spec"]["metrics"]]
    return {
        one["pods"]["metric"]["name"]: one["pods"]["target"]["averageValue"] for one in metrics if one["type"] == "Pods"
    }


def names_in(expression: str) -> set[str]:
    """The metrics of an expression of Prometheus."""
    promql = pytest.importorskip("promql_parser", reason="needs the package promql-parser (extra dev)")
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.add(node.name)
        for part in ("expr", "lhs", "rhs", "vector_selector", "vs"):
            if (child := getattr(node, part, None)) is not None:
                walk(child)
        for child in getattr(node, "args", None) or ():
            walk(child)

    walk(promql.parse(expression))
    return found


@pytest.mark.parametrize("arrangement", ["cpu", "gpu", "mig"])
def test_it_is_scaled_by_gauges_that_a_replica_has(arrangement):
    names = pod_metrics(rendered(arrangement)).keys()
    assert names
    assert names <= MEASURED


def test_prometheus_adapter_is_told_of_every_one_of_them():
    [rule] = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"]
    wanted = {name for arrangement in ARRANGEMENTS for name in pod_metrics(rendered(arrangement))}
    told = set(re.search(r'__name__=~"([\w|]+)"', rule["seriesQuery"])[1].split("|"))
    assert told == wanted


@pytest.mark.parametrize(("with_keda", "without"), [("keda", "cpu"), ("gpu with keda", "gpu")])
def test_keda_asks_for_the_same_and_aims_at_the_same(with_keda, without):
    [scaled] = of(rendered(with_keda), "ScaledObject")
    triggers = [each for each in scaled["spec"]["triggers"] if each["type"] == "prometheus"]
    triggers = [each["metadata"] for each in triggers]
    asked = {name: float(each["threshold"]) for each in triggers for name in names_in(each["query"])}
    aimed = {name: decimal(value) for name, value in pod_metrics(rendered(without)).items()}
    assert asked == pytest.approx(aimed)
    assert all('namespace="music"' in each["query"] for each in triggers)


def decimal(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


def test_kserve_is_scaled_by_a_gauge_that_a_replica_has():
    [metric] = kserve()["inferenceservice"]["spec"]["predictor"]["autoScaling"]["metrics"]
    assert names_in(metric["external"]["metric"]["query"]) <= MEASURED


def rules(documents: tuple[Document, ...]) -> list[Document]:
    groups = [group for each in of(documents, "PrometheusRule") for group in each["spec"]["groups"]]
    return [rule for group in groups for rule in group["rules"]]


RULES = DEPLOY / "prometheus" / "replicas.yaml"


def alerts_of(path: Path) -> list[Document]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def test_the_rules_are_those_of_each_replica_and_of_all_together():
    own = alerts_of(RULES)
    of_each = alerts_of(ROOT / "docker" / "observability" / "rules.yaml")  # tests/unit/test_observability.py
    assert rules(rendered("cpu")) == [*of_each, *own]
    assert len({rule["alert"] for rule in [*of_each, *own]}) == len(of_each) + len(own)


def test_prometheus_calls_replicas_as_the_rules_do():
    endpoints = [one for each in of(rendered("cpu"), "PodMonitor") for one in each["spec"]["podMetricsEndpoints"]]
    [of_replicas] = [each for each in endpoints if each["path"] == "/metrics"]
    assert {"targetLabel": "job", "replacement": "attune"} in of_replicas["relabelings"]


def test_each_alert_is_explained():
    guide = (DEPLOY / "README.md").read_text()
    assert not [rule["alert"] for rule in alerts_of(RULES) if f"| `{rule['alert']}` |" not in guide]


def test_the_rules_ask_for_what_is_measured():
    found = {name for rule in alerts_of(RULES) for name in names_in(rule["expr"])}
    assert found <= MEASURED.union(ENVOYS)
    assert len(found) >= 6


def run(command: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
def test_each_rule_of_many_replicas_waits_for_what_it_says():
    for what in ("check rules replicas.yaml", "test rules replicas_test.yaml"):
        done = run(["promtool", *what.split()], cwd=DEPLOY / "prometheus")
        assert done.returncode == 0, done.stdout + done.stderr
    tested = (DEPLOY / "prometheus" / "replicas_test.yaml").read_text()
    for rule in alerts_of(RULES):
        expected = rf"alertname: {rule['alert']}\n\s+exp_alerts:\n\s+- exp_labels"
        assert re.search(expected, tested), f"{rule['alert']} is seen to fire"


# What others find

ALLOWED = {
    "CKV_K8S_11": "no limit of the processor: it would slow what is under way, and frees nothing",
    "CKV_K8S_43": "the images are the operator's own: image.digest pins them",
    "CKV_K8S_15": "images with a digest or a version need not be pulled each time",
}
"""Checks that are left out, and why."""


@pytest.mark.skipif(shutil.which("checkov") is None, reason="needs checkov: in an environment of its own, it is heavy")
@pytest.mark.parametrize("arrangement", ["cpu", "gpu", "mutual tls"])
def test_checkov_finds_nothing_else(arrangement, tmp_path):
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(rendered(arrangement)))
    command = ["checkov", "--directory", str(tmp_path), "--framework", "kubernetes", "--output", "json", "--quiet"]
    command += ["--skip-check", ",".join(ALLOWED), "--compact", "--skip-download"]
    done = run(command)
    found = json.loads(done.stdout)
    failed = found.get("results", {}).get("failed_checks", [])
    assert not [(each["check_id"], each["resource"]) for each in failed]
    assert found["summary"]["passed"] > 50 if "summary" in found else found["passed"] > 50


if __name__ == "__main__":  # what Helm makes of an arrangement: `python -m tests.unit.test_chart gpu`
    sys.stdout.write(yaml.safe_dump_all(rendered(sys.argv[1]), sort_keys=False))
