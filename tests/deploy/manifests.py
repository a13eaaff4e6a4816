"""What the deployment tests share: the manifests as a cluster gets them, and the tools that check them."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from support import ROOT

from tru_vlm.api.workers.litserve_seams import FAREWELL_SECONDS, WORKER_SECONDS
from tru_vlm.settings import Settings

OVERLAYS = ("dev", "staging", "prod")
KUBERNETES = ROOT / "deploy" / "kubernetes"
STOPPING_SECONDS = FAREWELL_SECONDS + WORKER_SECONDS
"""How long after DRAIN_SECONDS the server may go on: to say farewell to cut answers, and to end its workers."""

Object = dict[str, Any]


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of the tools of the ``deploy`` extra, which pip has put beside the interpreter."""
    command = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@cache
def rendered(overlay: str) -> str:
    """The overlay as ``kubectl apply --kustomize`` would send it."""
    done = tool("kubectl", "kustomize", KUBERNETES / "overlays" / overlay)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(overlay: str) -> list[Object]:
    return list(yaml.safe_load_all(rendered(overlay)))


def of_kind(overlay: str, kind: str) -> Object:
    (found,) = [item for item in objects(overlay) if item["kind"] == kind]
    return found


def pod_template(overlay: str) -> Object:
    return of_kind(overlay, "Deployment")["spec"]["template"]


def container(overlay: str) -> Object:
    (only,) = pod_template(overlay)["spec"]["containers"]
    return only


def variables(overlay: str) -> dict[str, str]:
    """The environment that the overlay gives the server, without what its Secret may add."""
    settings = of_kind(overlay, "ConfigMap")["data"]
    return settings | {item["name"]: item["value"] for item in container(overlay).get("env", [])}


def setting_names() -> set[str]:
    return {name.upper() for name in Settings.model_fields}
