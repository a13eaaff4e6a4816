"""The environments that tests are run in have what the product needs."""

from __future__ import annotations

import re
import tomllib

from support import ROOT

BROUGHT_BY_VLLM = {
    "fastapi",
    "jinja2",
    "llguidance",
    "numpy",
    "pillow",
    "prometheus-client",
    "psutil",
    "pydantic",
    "python-json-logger",
    "rich",
    "safetensors",
    "starlette",
    "tokenizers",
    "typer",
    "uvicorn",
    "websockets",
}
OF_THE_HF_ENGINE = {"bitsandbytes"}


def test_vllms_environment_has_every_requirement() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=!~\[ ]", requirement)[0].lower() for requirement in wanted}
    pins = (ROOT / "benchmarks" / "peers-requirements.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==", pins, re.MULTILINE))
    assert names - pinned - BROUGHT_BY_VLLM - OF_THE_HF_ENGINE == set(), "pin it in benchmarks/peers-requirements.txt"
