"""docker-compose.yml: it fits Compose's schema, the server's settings and the files beside it."""

from __future__ import annotations

import re

import pytest
import yaml
from manifests import STOPPING_SECONDS, setting_names, tool
from support import ROOT
from test_image import STAGES

from tru_vlm.settings import Settings

FILE = ROOT / "docker-compose.yml"
SERVICES = yaml.safe_load(FILE.read_text())["services"]
SERVERS = [name for name in SERVICES if name.startswith("server-")]


def test_it_fits_the_schema() -> None:
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_variables_are_settings(name: str) -> None:
    assert SERVICES[name]["environment"].keys() <= setting_names()
    assert SERVICES[name]["environment"]["HOST"] == "0.0.0.0"
    assert SERVICES[name]["build"]["target"] in STAGES


@pytest.mark.parametrize("name", SERVERS)
def test_stopping_leaves_time_to_drain(name: str) -> None:
    seconds = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings.model_fields["drain_seconds"].default + STOPPING_SECONDS


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined_and_published_on_this_machine_only(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(re.match(r"127\.0\.0\.1:|\$\{PUBLISH:-127\.0\.0\.1\}:", port) for port in service["ports"])


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_root_is_read_only(name: str) -> None:
    assert SERVICES[name]["read_only"] is True
    assert {volume.split(":")[1] for volume in SERVICES[name]["volumes"]} == {"/var/lib/tru-vlm/storage", "/models"}
