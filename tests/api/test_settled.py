"""A server's processes do not collect what they have loaded."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from tru_vlm.api.settled import settle_memory


@pytest.fixture
def _unsettled() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_unsettled")
def test_what_is_there_is_not_collected_and_what_comes_is() -> None:
    before = [[]]
    settle_memory()
    after = [[]]
    assert gc.get_freeze_count() > 1000
    assert not any(known is before for known in gc.get_objects())
    assert any(known is after for known in gc.get_objects())


_SET_UP = """
import gc, pathlib, sys
from tru_vlm.api.workers.lit_api import VideoLitAPI
from tru_vlm.settings import Settings
folder = pathlib.Path(sys.argv[1])
api = VideoLitAPI(Settings(_env_file=None, storage_dir=folder), folder)
api.setup("cpu")
print("collected" if any(known is api.engine for known in gc.get_objects()) else "settled")
"""


def test_a_worker_has_settled_when_it_is_set_up(tmp_path: Path) -> None:
    environment = {**os.environ, "LITSERVE_WORKER_ID": "0"}
    command = [sys.executable, "-c", _SET_UP, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["settled"], done.stderr
