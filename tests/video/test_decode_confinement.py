"""Limits that a decode process sets for itself, each tried in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")

GIBIBYTE = 1 << 30
PROCESS = """
import mmap, sys
from tru_vlm.video.decode_confinement import limit_memory
device, path = sys.argv[1:]
limit_memory(1 << 30, device)

def tried(work):
    try:
        work()
    except (MemoryError, OSError) as error:
        return type(error).__name__
    return "done"

def reserve():  # what CUDA does at its start: addresses without memory behind them
    mmap.mmap(-1, 1 << 38, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)

def write():
    with open(path, "wb") as file:
        file.truncate((1 << 30) + 1)

print(tried(reserve), tried(lambda: bytearray(1 << 30)), tried(lambda: bytearray(1 << 20)), tried(write))
"""


@pytest.mark.parametrize(("device", "reserving"), [("cpu", "OSError"), ("cuda", "done")])
def test_with_cuda_memory_is_bounded_and_addresses_are_not(tmp_path: Path, device: str, reserving: str) -> None:
    command = [sys.executable, "-c", PROCESS, device, str(tmp_path / "file")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == [reserving, "MemoryError", "done", "OSError"]


def test_too_little_for_the_libraries_is_told() -> None:
    code = "from tru_vlm.video.decode_confinement import limit_memory; limit_memory(1 << 26, 'cuda')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DecodeSetupError: DECODE_MEMORY_BYTES is 67108864; the decoding libraries need at least" in result.stderr
