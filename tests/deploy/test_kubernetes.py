"""The manifests fit Kubernetes' schemas, the server's settings and each other.  No cluster has seen them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from manifests import OVERLAYS, STOPPING_SECONDS, container, objects, of_kind, pod_template, rendered, tool, variables
from manifests import setting_names as known_settings
from support import ROOT

from tru_vlm.settings import Settings, load_settings

FOREIGN_KINDS = {
    "ScaledObject": "keda.sh/v1alpha1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
}
POD_LABELS_OF = {
    "Service": lambda spec: spec["selector"],
    "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
    "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
    "Deployment": lambda spec: spec["selector"]["matchLabels"],
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_schema_of_its_kind(overlay: str, tmp_path: Path) -> None:
    file = tmp_path / f"{overlay}.yaml"
    file.write_text(rendered(overlay))
    done = tool("kubernetes-validate", "--strict", file)
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = {
        item["kind"]: item["apiVersion"] for item in objects(overlay) if f"for kind {item['kind']} with" in done.stdout
    }
    assert unknown.items() <= FOREIGN_KINDS.items()


def test_the_schemas_are_used(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(rendered("prod").replace("runAsNonRoot", "runAsNonRot"))
    assert tool("kubernetes-validate", "--strict", file).returncode != 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_accepts_every_setting(overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = variables(overlay)
    assert given.keys() <= known_settings()
    monkeypatch.chdir(tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert isinstance(load_settings(), Settings)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_time_to_drain(overlay: str) -> None:
    spec = pod_template(overlay)["spec"]
    leaving = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = int(variables(overlay)["DRAIN_SECONDS"])
    assert spec["terminationGracePeriodSeconds"] > leaving + drain + STOPPING_SECONDS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_readiness_asks_for_the_workers(overlay: str) -> None:
    paths = {name: probe["httpGet"]["path"] for name, probe in container(overlay).items() if name.endswith("Probe")}
    assert paths == {
        "startupProbe": "/v1/health/live",
        "livenessProbe": "/v1/health/live",
        "readinessProbe": "/v1/health/ready",
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(overlay: str) -> None:
    assert of_kind(overlay, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = pod_template(overlay)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container(overlay)["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods(overlay: str) -> None:
    labels = pod_template(overlay)["metadata"]["labels"]
    for kind, selector in POD_LABELS_OF.items():
        wanted = selector(of_kind(overlay, kind)["spec"])
        assert wanted
        assert wanted.items() <= labels.items(), kind


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_mounted_and_named_exists(overlay: str) -> None:
    spec = pod_template(overlay)["spec"]
    assert {mount["name"] for mount in container(overlay)["volumeMounts"]} == {item["name"] for item in spec["volumes"]}
    claims = {item["metadata"]["name"] for item in objects(overlay) if item["kind"] == "PersistentVolumeClaim"}
    used = {item["persistentVolumeClaim"]["claimName"] for item in spec["volumes"] if "persistentVolumeClaim" in item}
    assert used == claims
    (from_map,) = [
        source["configMapRef"]["name"] for source in container(overlay)["envFrom"] if "configMapRef" in source
    ]
    assert from_map == of_kind(overlay, "ConfigMap")["metadata"]["name"]
    assert spec["serviceAccountName"] == of_kind(overlay, "ServiceAccount")["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_card_goes_with_the_image_for_cards(overlay: str) -> None:
    has_card = "nvidia.com/gpu" in container(overlay)["resources"]["limits"]
    assert container(overlay)["image"].rsplit("-", 1)[1] == ("cuda" if has_card else "cpu")
    assert variables(overlay)["DEVICE"] == ("cuda" if has_card else "cpu")


@pytest.mark.parametrize(("overlay", "kind"), [("staging", "HorizontalPodAutoscaler"), ("prod", "ScaledObject")])
def test_the_autoscaler_owns_the_number_of_pods(overlay: str, kind: str) -> None:
    deployment = of_kind(overlay, "Deployment")
    target = of_kind(overlay, kind)["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"]


def test_a_volume_that_one_node_holds_has_one_pod() -> None:
    spec = of_kind("dev", "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_keda_asks_for_its_own_namespace() -> None:
    scaled = of_kind("prod", "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert f'namespace="{scaled["metadata"]["namespace"]}"' in trigger["metadata"]["query"]
    assert scaled["spec"]["minReplicaCount"] >= 2
    assert scaled["spec"]["fallback"]["replicas"] <= scaled["spec"]["maxReplicaCount"]


def test_prometheus_finds_the_port() -> None:
    (endpoint,) = of_kind("prod", "ServiceMonitor")["spec"]["endpoints"]
    service = of_kind("prod", "Service")
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert of_kind("prod", "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= (
        service["metadata"]["labels"].items()
    )


@pytest.mark.parametrize("overlay", ["staging", "prod"])
def test_the_operator_gets_the_alert_rules_of_prometheus(overlay: str) -> None:
    rules = of_kind(overlay, "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())
    # Their `job` is what the operator makes it: the name of the Service behind the ServiceMonitor.
    assert 'up{job="tru-vlm"}' in str(rules["spec"])
    assert of_kind(overlay, "Service")["metadata"]["name"] == "tru-vlm"
    assert "jobLabel" not in of_kind(overlay, "ServiceMonitor")["spec"]


def test_the_rules_object_is_generated_from_the_rules() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/prometheus_rule.py"], capture_output=True, check=True)
    committed = ROOT / "deploy/kubernetes/components/monitoring/prometheus_rule.yaml"
    assert committed.read_bytes() == done.stdout
