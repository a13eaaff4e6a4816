"""The bundled demo model: its clip generator, its training code, its weights and its score. Knows nothing of the
server.
"""

from pathlib import Path

WEIGHTS_DIR = Path(__file__).resolve().parent / "weights"

__all__ = ["WEIGHTS_DIR"]
