"""Where the files that are not code lie: at the top of a checkout, or inside the package in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "_web"
_WEB = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent

TEMPLATES_DIR = _WEB / "templates"
STATIC_DIR = _WEB / "static"
