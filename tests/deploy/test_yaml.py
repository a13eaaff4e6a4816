"""All YAML that people edit is in one style."""

from __future__ import annotations

from manifests import tool


def test_yamllint_has_nothing_to_say() -> None:
    done = tool(
        "yamllint", "--strict", "--config-file", "deploy/yamllint.yml", "deploy", ".github", "docker-compose.yml"
    )
    assert done.returncode == 0, done.stdout
