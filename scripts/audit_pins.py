"""Looks up the pins of constraints.txt among known vulnerabilities, with pip-audit.

    python scripts/audit_pins.py

Exit status: 0 if none is known, 1 if one is.  Where pip-audit is not installed, or its service knows nothing or cannot
be reached, it says "not run" with the reason, and exits with 0, or with 3 if ``--strict`` is given.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[1] / "constraints.txt"
_NOT_RUN = 3


def main() -> int:
    """Audit; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Looks up the pins among known vulnerabilities.")
    parser.add_argument("--strict", action="store_true", help="fail where nothing could be looked up")
    is_strict = parser.parse_args().strict
    if importlib.util.find_spec("pip_audit") is None:
        return _not_run("pip-audit is not installed (pip install pip-audit)", is_strict=is_strict)
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINS), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - its own words
    try:
        pins: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return _not_run(f"pip-audit ended with {done.returncode}: {done.stderr.strip()[-500:]}", is_strict=is_strict)
    return report(pins, is_strict=is_strict)


def report(pins: list[dict[str, Any]], *, is_strict: bool) -> int:
    """Tell what pip-audit found of each pin; returns the exit status."""
    skipped = [pin for pin in pins if "skip_reason" in pin]
    if len(skipped) == len(pins):  # pip-audit itself would say that no vulnerability is known
        reason = skipped[0]["skip_reason"] if skipped else "there are no pins"
        return _not_run(f"none of the pins could be looked up ({reason})", is_strict=is_strict)
    found = [(pin, item) for pin in pins for item in pin.get("vulns", [])]
    for pin, item in found:
        fixed = ", ".join(item["fix_versions"]) or "no version yet"
        sys.stdout.write(f"{pin['name']} {pin['version']}: {item['id']}, fixed in {fixed}\n")
    for pin in skipped:
        sys.stdout.write(f"not looked up: {pin['skip_reason']}\n")
    sys.stdout.write(f"{len(found)} known vulnerabilities in {len(pins) - len(skipped)} of {len(pins)} pins\n")
    return 1 if found else 0


def _not_run(reason: str, *, is_strict: bool) -> int:
    sys.stdout.write(f"not run: {reason}\n")
    return _NOT_RUN if is_strict else 0


if __name__ == "__main__":
    sys.exit(main())
