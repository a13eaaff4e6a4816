"""Clips that several modules share, and the folder of real clips where it is present."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from qvl_clips import Clip, available_backends, write_clip
from support import real_clips


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The pictures are small: torch's own threads would only stand in the way of the other test processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Clip], Path]:
    """Encodes a clip once per session, whoever asks for it."""
    made: dict[str, Path] = {}

    def make(clip: Clip) -> Path:
        known_by = repr(clip)  # two modules may give one name to different clips
        if known_by not in made:
            made[known_by] = write_clip(tmp_path_factory.mktemp("clip"), clip)
        return made[known_by]

    return make


@pytest.fixture(scope="session")
def real_videos() -> Path:
    folder = real_clips()
    if folder is None:
        pytest.skip("the folder of real clips is not here")
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", available_backends())
