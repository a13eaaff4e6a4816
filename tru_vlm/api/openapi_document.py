"""Writes the API's description to a file: ``python -m tru_vlm.api.openapi_document docs/openapi.json``.

No model is loaded and no port is opened, and the environment's settings are not looked at.  A test fails when the
committed file and the code differ.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tru_vlm.api.app import build_server
from tru_vlm.api.keys import Keyring
from tru_vlm.processor.profile import load_profile
from tru_vlm.served_models import served_models
from tru_vlm.settings import Settings


def openapi_document() -> dict[str, Any]:
    """What ``/openapi.json`` of a server with the default settings answers."""
    settings = Settings.model_construct()
    served = served_models(settings)
    profiles = {model.name: load_profile(model.settings.model_path) for model in served.models}
    with tempfile.TemporaryDirectory() as sockets:
        document: dict[str, Any] = build_server(settings, served, profiles, Keyring(), Path(sockets)).app.openapi()
    return document


def openapi_text() -> str:
    """The text of the committed file."""
    return json.dumps(openapi_document(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def main(path: Path) -> None:
    """Write the description."""
    path.write_text(openapi_text(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
