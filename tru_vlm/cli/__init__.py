"""The command ``tru-vlm``.  Alone it serves, and imports nothing else for that; its other words use the client."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command with the process's arguments.

    Returns:
        The exit status of a server; the other commands end with :class:`SystemExit`.
    """
    if len(sys.argv) == 1:
        from tru_vlm.launch import main as serve

        return serve()
    from tru_vlm.cli.app import app

    app(prog_name="tru-vlm")
    return 0
