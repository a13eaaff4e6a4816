"""The types for TypeScript are those of the committed description, and the example type-checks and runs."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT, Server, require

from demo_model.generator import ClipSpec, Event, encode

FOLDER = ROOT / "typescript"
TIMEOUT = 300


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with its tools installed; a copy, where they are not installed beside it."""
    require(shutil.which("npm"), "npm is not installed")
    if (FOLDER / "node_modules").is_dir():
        return FOLDER
    root = tmp_path_factory.mktemp("typescript")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=lambda *_: {"adr", "images"})
    shutil.copytree(FOLDER, root / "typescript")
    installed = run("npm", "ci", "--no-audit", "--no-fund", cwd=root / "typescript")
    require(installed.returncode == 0, f"npm cannot install: {installed.stderr[-400:]}")
    return root / "typescript"


def test_the_types_are_those_of_the_description(project: Path) -> None:
    result = run("npm", "run", "check", cwd=project)
    assert result.returncode == 0, f"run: npm run generate, in typescript/\n{result.stdout}{result.stderr}"


def test_the_example_runs(project: Path, server: Server, tmp_path: Path) -> None:
    spec = ClipSpec(events=(Event("red", "circle", "moves left"),), duration_seconds=4.0)
    clip = encode(spec, tmp_path / "clip.mp4").read_bytes()
    out = tmp_path / "example"
    built = run("npx", "tsc", "--noEmit", "false", "--outDir", str(out), cwd=project)
    assert built.returncode == 0, built.stdout
    (out / "package.json").write_text('{"type": "module"}')
    url = "data:video/mp4;base64," + base64.b64encode(clip).decode()
    result = run("node", str(out / "example.js"), server.base, url, cwd=tmp_path)
    assert result.stdout.startswith("A red circle moves left."), result.stdout + result.stderr
