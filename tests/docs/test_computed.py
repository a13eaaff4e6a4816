"""The model guide's table and the architecture's picture are what their scripts make, and name what is there."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
from support import ROOT

MODELS = runpy.run_path(str(ROOT / "scripts" / "model_table.py"))
ARCHITECTURE = runpy.run_path(str(ROOT / "scripts" / "draw_architecture.py"))


@pytest.mark.parametrize("size", MODELS["SIZES"], ids=lambda size: size.name)
def test_a_models_row_is_computed(size: Any) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert MODELS["row"](size) in page.splitlines(), "run scripts/model_table.py and mend the page"


def test_the_picture_is_drawn_by_its_script() -> None:
    committed = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert committed == ARCHITECTURE["draw"](), "run scripts/draw_architecture.py"


def test_the_picture_names_what_is_there() -> None:
    for box in ARCHITECTURE["BOXES"]:
        for path in box.path.split(", "):
            assert (ROOT / path).exists() or (ROOT / "tru_vlm" / path).exists(), path
