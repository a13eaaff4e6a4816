"""What vLLM must find in its environment, and which cards are a worker's.  Run before vLLM is imported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from tru_vlm.engine.vllm.guardian import MARK, Guardian

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
SOCKETS = "VLLM_RPC_BASE_PATH"
"""Where vLLM's processes make the sockets by which they speak to each other; it removes none of them."""

_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",  # a self-hosted server tells nobody what it does
    # setproctitle would write over the memory in which guardian.py looks for its mark.
    "SPT_NOENV": "1",
}
_FORCED = {
    # A forked child would inherit the worker's threads and sockets, and on CUDA could not use the card.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def prepare_environment(
    devices: Sequence[str], environment: MutableMapping[str, str] = os.environ, *, num_threads: int = 1
) -> None:
    """Set what vLLM reads when it is imported, and its processes when they start; what the operator has set stays.

    Args:
        devices: the worker's, as ``"cuda:2"`` or ``"cpu"``.
        environment: where to set it.
        num_threads: that a CPU computes with.
    """
    for name, value in _DEFAULTS.items():
        environment.setdefault(name, value)
    environment.update(_FORCED)
    if all(device == "cpu" for device in devices):
        environment.setdefault(THREADS, str(num_threads))
    else:
        environment[VISIBLE] = visible_devices(devices, environment)


def binds_threads(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the operator has told vLLM which cores to compute on, on a CPU."""
    return environment.get(BINDING, "nobind") != "nobind"


@contextlib.contextmanager
def guarded_children(mark: str) -> Iterator[Guardian]:
    """Processes that are started meanwhile bear the guardian's mark, and make their sockets in its folder.

    The guardian is closed where the block raises, and else its owner's.
    """
    chosen = os.environ.get(SOCKETS)
    guardian = Guardian(mark, parent=chosen)
    os.environ.update({MARK: mark, SOCKETS: str(guardian.folder)})
    try:
        yield guardian
    except BaseException:
        guardian.close()
        raise
    finally:
        del os.environ[MARK], os.environ[SOCKETS]
        if chosen is not None:
            os.environ[SOCKETS] = chosen


def visible_devices(devices: Sequence[str], environment: Mapping[str, str]) -> str:
    """The value of ``CUDA_VISIBLE_DEVICES`` that leaves only these: numbers count what is visible now.

    Raises:
        ValueError: if one of them is not visible.
    """
    numbers = [int(device.partition(":")[2] or 0) for device in devices]
    if not environment.get(VISIBLE):
        return ",".join(map(str, numbers))
    visible = [name.strip() for name in environment[VISIBLE].split(",")]
    if max(numbers) >= len(visible):
        raise ValueError(f"{VISIBLE}={environment[VISIBLE]} has {len(visible)} devices; wanted {', '.join(devices)}.")
    return ",".join(visible[number] for number in numbers)
