"""Where each model's workers run, and whether several models can live there together.  It starts no process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tru_vlm.engine.memory import MemoryNeed, free_host_bytes, host_memory_problem, need_of
from tru_vlm.served_models import ServedModel
from tru_vlm.settings import Settings


class StartError(RuntimeError):
    """The server cannot start; the text says why, for the operator."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What one model asks for.

    Attributes:
        model: its name.
        accelerator: "auto", "cuda", "mps" or "cpu".
        num_devices: how many CUDA devices; 0 takes all.
        device_numbers: which CUDA devices; None leaves it to ``num_devices``.
        workers_per_device: on each device, or group of devices.
        devices_per_worker: neighbouring devices that one worker has together.
    """

    model: str
    accelerator: str = "auto"
    num_devices: int = 0
    device_numbers: tuple[int, ...] | None = None
    workers_per_device: int = 1
    devices_per_worker: int = 1

    @classmethod
    def of(cls, model: ServedModel) -> Placement:
        """What a model's settings say."""
        settings = model.settings
        return cls(
            model=model.name,
            accelerator=settings.device,
            num_devices=settings.devices,
            device_numbers=model.device_numbers,
            workers_per_device=settings.workers_per_device,
            devices_per_worker=settings.vllm_tensor_parallel_size if settings.model_backend == "vllm" else 1,
        )


def group_devices(devices: list[Any], devices_per_worker: int) -> list[Any]:
    """LitServe's list of devices with several in the place of one.

    Args:
        devices: of each worker, a list of one name; ``["cpu"]`` where there are no cards.
        devices_per_worker: how many a worker shall have.

    Raises:
        StartError: if that leaves some over, or there are no cards.
    """
    if devices_per_worker == 1:
        return devices
    names = [name for names in devices for name in ([names] if isinstance(names, str) else names)]
    if len(names) % devices_per_worker or not all(name.startswith("cuda") for name in names):
        raise StartError(
            f"VLLM_TENSOR_PARALLEL_SIZE={devices_per_worker}: a worker needs as many CUDA devices, and the devices are "
            f"{', '.join(names)}. Set DEVICES to a multiple of it."
        )
    return [names[start : start + devices_per_worker] for start in range(0, len(names), devices_per_worker)]


def check_shared_cards(models: Sequence[ServedModel], devices: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Refuse models that would each size their memory as if they had a card alone.

    They load at the same time, so none can know what the others will take: it must be said.

    Args:
        models: all of them.
        devices: of each model by name, its workers' devices.

    Raises:
        StartError: naming the card, the model and the setting.
    """
    users: dict[str, list[ServedModel]] = {}
    for model in models:
        for card in sorted({name for group in devices[model.name] for name in group if name.startswith("cuda")}):
            users.setdefault(card, []).append(model)
    for card, sharing in users.items():
        if len(sharing) == 1:
            continue
        names = ", ".join(model.name for model in sharing)
        for model in sharing:
            if model.settings.model_backend == "hf" and not model.settings.kv_cache_tokens:
                raise StartError(
                    f"MODELS: {model.name}.kv_cache_tokens is 0, which sizes the cache by free memory, and {names} "
                    f"share {card}. Give it a number, or give the models devices of their own."
                )
        share = sum(_vllm_share(model.settings) for model in sharing)
        if share > 1:
            raise StartError(
                f"MODELS: {names} share {card}, and their vllm_gpu_memory_utilization adds up to {share:g}; at most 1 "
                "is accepted."
            )


def check_host_memory(models: Sequence[ServedModel], devices: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Refuse models that this machine's memory does not hold, before any of them is loaded.

    Args:
        models: all of them.
        devices: of each model by name, its workers' devices.

    Raises:
        StartError: with the numbers.
    """
    needs: dict[str, tuple[MemoryNeed, int, bool]] = {}
    for model in models:
        workers = devices[model.name]
        is_cuda = any(name.startswith("cuda") for group in workers for name in group)
        if model.settings.check_memory and (need := need_of(model.settings, is_cuda=is_cuda)):
            needs[model.name] = (need, len(workers), is_cuda)
    if problem := host_memory_problem(needs, free_host_bytes()):
        raise StartError(problem)


def num_cpu_workers(devices: Mapping[str, Sequence[Sequence[str]]]) -> int:
    """How many workers share the CPU.

    Args:
        devices: of each model by name, its workers' devices.
    """
    return Counter(name for workers in devices.values() for group in workers for name in group)["cpu"]


def _vllm_share(settings: Settings) -> float:
    is_vllm = settings.model_backend == "vllm"
    return settings.vllm_gpu_memory_utilization * settings.workers_per_device if is_vllm else 0.0
