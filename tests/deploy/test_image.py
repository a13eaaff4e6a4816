"""The Dockerfile: linted, and what it copies, sets and starts exists.  Tests build no image."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from manifests import setting_names, tool
from support import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
STAGES = {
    match["name"]: match["base"] for match in re.finditer(r"^FROM (?P<base>\S+) AS (?P<name>\S+)$", DOCKERFILE, re.M)
}
NOT_SETTINGS = {
    "PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "HF_HOME", "TRITON_CACHE_DIR", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "PIP_DISABLE_PIP_VERSION_CHECK",
}  # fmt: skip


def instructions(word: str) -> list[str]:
    return [line.removeprefix(word).strip() for line in LINES if line.startswith(f"{word} ")]


def stage_lines(name: str) -> list[str]:
    """The instructions that make up an image: its stage's, and those of the stages it is built on."""
    begin = next(i for i, line in enumerate(LINES) if line.startswith("FROM ") and line.endswith(f" AS {name}"))
    end = next((i for i in range(begin + 1, len(LINES)) if LINES[i].startswith("FROM ")), len(LINES))
    base = STAGES[name]
    return (stage_lines(base) if base in STAGES else []) + LINES[begin + 1 : end]


def test_hadolint_has_nothing_to_say() -> None:
    done = tool("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_hadolint_is_used(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(DOCKERFILE.replace("WORKDIR /src", "WORKDIR src"))
    assert "DL3000" in tool("hadolint", file).stdout


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [
        word
        for copy in instructions("COPY")
        if "--from=" not in copy
        for word in [part for part in copy.split() if not part.startswith("--")][:-1]
    ]
    assert "." in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source == "." or any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source
    for entry in allowed:
        assert (ROOT / entry).exists(), entry


def test_the_wheel_needs_nothing_that_is_kept_from_the_builder() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "LICENSE", "NOTICE"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert needed <= allowed


def test_variables_are_settings() -> None:
    words = [word for line in instructions("ENV") for word in re.findall(r"(?:^|\s)([A-Z_]+)=", line)]
    assert {"HOST", "PORT", "STORAGE_DIR", "DEVICE"} <= set(words)
    assert set(words) - NOT_SETTINGS <= setting_names()


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_last_stages_are_small_and_nobody_is_root(target: str) -> None:
    lines = stage_lines(target)
    users = [line for line in lines if line.startswith("USER ")]
    assert users[-1] == "USER 10001:10001"
    installed = " ".join(line for line in lines if line.startswith("RUN apt-get"))
    assert "python3" in installed
    assert not re.search(
        r"\b(gcc|make|g\+\+|build-essential|python3-dev|python3-venv|python3-pip|git|curl)\b", installed
    )
    assert not any("pip install" in line for line in lines)


def test_signals_reach_the_server() -> None:
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("ENTRYPOINT") == ['["/usr/bin/tini", "--", "/usr/local/bin/entrypoint"]']
    assert instructions("CMD") == ['["tru-vlm"]']
    assert "tru-vlm" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert (ROOT / "deploy/image/entrypoint.sh").read_text().rstrip().endswith('exec "$@"')


def test_the_entrypoint_becomes_the_command(tmp_path: Path) -> None:
    code = "import os; print(os.getpid())"
    process = subprocess.Popen(
        [ROOT / "deploy/image/entrypoint.sh", sys.executable, "-c", code],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)
    assert int(output) == process.pid


def test_the_requirements_are_the_projects(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "deploy/image/requirements.py", ROOT / "pyproject.toml"]
    printed = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed.splitlines() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.M)
