"""The Serve configuration and the RayService fit each other, Ray's schema, Kubernetes' schema and our options.

The schema of the RayService itself belongs to an operator; no cluster has seen the manifest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from manifests import setting_names, tool
from support import ROOT

RAY = ROOT / "deploy" / "ray"
# In a process of its own: Ray's imports warn, which fails a test.
CHECK = """
import json, sys
from ray.serve.schema import ServeDeploySchema
from tru_vlm.cluster.application import ClusterOptions, build
(application,) = ServeDeploySchema.model_validate(json.load(sys.stdin)).applications
module, _, name = application.import_path.partition(":")
assert (module, name) == (build.__module__, build.__name__)
print(ClusterOptions.model_validate(application.args).model_dump_json())
"""


def service() -> tuple[dict[str, Any], dict[str, Any]]:
    ray_service, claim = yaml.safe_load_all((RAY / "ray_service.yaml").read_text())
    return ray_service, claim


def serve_configuration() -> dict[str, Any]:
    return dict(yaml.safe_load((RAY / "serve.yaml").read_text()))


def options() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        check=False,
        input=json.dumps(serve_configuration()),
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_ray_and_our_options_accept_the_configuration() -> None:
    assert options()["settings"].keys() <= setting_names()


def test_the_service_has_the_same_configuration() -> None:
    assert yaml.safe_load(service()[0]["spec"]["serveConfigV2"]) == serve_configuration()


def test_its_pods_fit_kubernetes_schema(tmp_path: Path) -> None:
    ray_service, claim = service()
    cluster = ray_service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": group["template"]["spec"]}
        for number, group in enumerate(groups)
    ]
    file = tmp_path / "pods.yaml"
    file.write_text(yaml.safe_dump_all([*pods, claim]))
    done = tool("kubernetes-validate", "--strict", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_worker_has_room_for_a_server() -> None:
    cluster = service()[0]["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    asked = options()
    assert int(resources["limits"]["nvidia.com/gpu"]) >= asked["gpus_per_server"]
    assert int(resources["requests"]["cpu"]) >= asked["cpus_per_server"]
    assert group["maxReplicas"] * int(resources["limits"]["nvidia.com/gpu"]) >= asked["max_servers"]
    (ray,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    assert ray == f"ray=={cluster['rayVersion']}"
