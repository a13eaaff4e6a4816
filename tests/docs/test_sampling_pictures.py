"""The sampling guide's numbers and pictures are what the server's code makes of the sample clips."""

from __future__ import annotations

import runpy
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import ROOT

PAGE = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "make_sampling_pictures.py"))
IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def sampler() -> Any:
    return SCRIPT["Server"]()


@pytest.mark.parametrize("name", SCRIPT["FIGURES"])
def test_a_figure_is_what_the_page_says_and_shows(name: str, sampler: Any) -> None:
    results = [sampler.result(row) for row in SCRIPT["FIGURES"][name]]
    for result in results:
        assert result.line() in PAGE.splitlines(), "run scripts/make_sampling_pictures.py and mend the page"
    picture = np.asarray(SCRIPT["draw"](results), dtype=np.int16)
    committed = np.asarray(Image.open(IMAGES / f"sampling-{name}.png").convert("RGB"), dtype=np.int16)
    assert committed.shape == picture.shape, "run scripts/make_sampling_pictures.py"
    assert np.abs(committed - picture).mean() < 1, "run scripts/make_sampling_pictures.py"  # decoders differ by a shade


def test_the_table_of_real_videos_is_computed(sampler: Any) -> None:
    for line in SCRIPT["real_lines"](sampler):
        assert line in PAGE.splitlines()


def test_pictures_are_small_and_told() -> None:
    sizes = {path.name: path.stat().st_size for path in IMAGES.glob("sampling-*.png")}
    assert len(sizes) == len(SCRIPT["FIGURES"])
    assert max(sizes.values()) < 200_000
    for name in sizes:
        assert f"](images/{name})" in PAGE
    assert "![]" not in PAGE
