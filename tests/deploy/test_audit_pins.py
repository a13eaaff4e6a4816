"""The pins' audit says what it found, and never that all is well where nothing was looked up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

SCRIPT = ROOT / "scripts" / "audit_pins.py"
GOOD = '{"name": "a", "version": "1", "vulns": []}'
BAD = '{"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}'
SKIPPED = '{"name": "c", "skip_reason": "c (4) is not on the index"}'


@pytest.mark.parametrize(
    ("printed", "words", "status", "strict_status"),
    [
        (f'{{"dependencies": [{GOOD}, {SKIPPED}]}}', "0 known vulnerabilities in 1 of 2 pins", 0, 0),
        (f'{{"dependencies": [{GOOD}, {BAD}]}}', "b 2: CVE-1, fixed in 3", 1, 1),
        (f'{{"dependencies": [{SKIPPED}]}}', "not run: none of the pins could be looked up", 0, 3),
        ("no connection", "not run: pip-audit ended with 0", 0, 3),
    ],
)
def test_what_it_says(tmp_path: Path, printed: str, words: str, status: int, strict_status: int) -> None:
    """With a pip_audit that prints these words: the real one needs the network."""
    (tmp_path / "pip_audit.py").write_text(f"print({printed!r})")
    for arguments, expected in (([], status), (["--strict"], strict_status)):
        done = subprocess.run(
            [sys.executable, SCRIPT, *arguments],
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert words in done.stdout, done.stdout + done.stderr
        assert done.returncode == expected
