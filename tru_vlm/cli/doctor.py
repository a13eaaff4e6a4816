"""``tru-vlm doctor``: whether this machine has what the server needs, in clear lines.  Starts and changes nothing."""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import typer

from tru_vlm.cli import arguments as a
from tru_vlm.cli.output import FAILED, size, stdout, write_json
from tru_vlm.served_models import ServedModel, ServedModels, served_models
from tru_vlm.settings import Settings, SettingsError, load_settings

State = Literal["ok", "note", "failed"]
_MARKS: dict[State, str] = {"ok": "[green]ok    [/]", "note": "[yellow]note  [/]", "failed": "[red]failed[/]"}
_MIN_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and a sentence."""

    name: str
    state: State
    text: str


def doctor(*, as_json: a.AsJson = False) -> None:
    """Check Python, model, devices, decoders, disk and port; exit status 1 if the server could not start."""
    findings: list[Finding] = []
    for finding in _look():
        findings.append(finding)
        if not as_json:
            stdout.print(_MARKS[finding.state], f"{finding.name}:", end=" ")
            stdout.print(finding.text, markup=False)
    if as_json:
        write_json(findings)
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(FAILED)


def _look() -> Iterator[Finding]:
    is_new = sys.version_info >= _MIN_PYTHON
    yield Finding("Python", "ok" if is_new else "failed", f"{platform.python_version()}, 3.11 or newer is needed")
    try:
        settings = load_settings()
        served = served_models(settings)
    except SettingsError as error:
        yield Finding("settings", "failed", str(error))
        return
    yield Finding("settings", "ok", f"models: {', '.join(model.name for model in served.models)}")
    for check in (_torch, _decoders, _disk, _port):
        yield check(settings)
    for look in (_flash_attn, _bitsandbytes, _vllm):
        yield look(served)
    for model in served.models:
        yield _model(model)
    yield _memory(served)


def _torch(settings: Settings) -> Finding:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Finding("torch", "failed", f"cannot be imported ({error})")
    found = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        cards = ", ".join(f"{card.name} ({size(card.total_memory)})" for card in names)
        return Finding("torch", "ok", f"{found}, CUDA {torch.version.cuda}: {cards}")
    if settings.device == "cuda":
        return Finding("torch", "failed", f"DEVICE=cuda, and {found} sees no CUDA device")
    return Finding("torch", "note", f"{found}, no CUDA device: the model runs on the CPU, which is for small models")


def _flash_attn(served: ServedModels) -> Finding:
    found = _version("flash-attn")
    if found is None:
        wanted = " though USE_FLASH_ATTN=true" if any(model.settings.use_flash_attn for model in served.models) else ""
        return Finding("flash-attn", "note", f"not installed{wanted}: PyTorch's own attention is used")
    return _imports("flash-attn", "flash_attn", found, is_needed=False)


def _bitsandbytes(served: ServedModels) -> Finding:
    every = [model.settings for model in served.models]
    is_needed = any(s.model_backend == "hf" and s.quantization in {"int4", "int8"} for s in every)
    found = _version("bitsandbytes")
    if found is None:
        state: State = "failed" if is_needed else "note"
        return Finding("bitsandbytes", state, "not installed; QUANTIZATION=int4 and int8 need it")
    return _imports("bitsandbytes", "bitsandbytes", found, is_needed=is_needed)


def _vllm(served: ServedModels) -> Finding:
    from tru_vlm.engine.vllm.installed import vllm_version

    try:
        return Finding("vLLM", "ok", vllm_version())
    except ValueError as error:
        if any(model.settings.model_backend == "vllm" for model in served.models):
            return Finding("vLLM", "failed", str(error))
        return Finding("vLLM", "note", "not installed; MODEL_BACKEND=vllm needs it")


def _decoders(settings: Settings) -> Finding:
    from tru_vlm.launch import decoding_problem
    from tru_vlm.video.decoders import decoder_states

    states = decoder_states()
    shown = "; ".join(f"{name}: {state}" for name, state in states.items())
    if problem := decoding_problem(settings):
        return Finding("video decoders", "failed", problem)
    if "available" not in states.values():
        return Finding("video decoders", "failed", f"none loads ({shown})")
    return Finding("video decoders", "ok", shown)


def _model(model: ServedModel) -> Finding:
    from tru_vlm.processor.profile import ModelProfileError, load_profile

    path = model.settings.model_path
    try:
        profile = load_profile(path, max_context_tokens=model.settings.max_context_tokens)
    except ModelProfileError as error:
        return Finding(f"model {model.name}", "failed", str(error))
    text = f"{path}: {profile.model_type}, {profile.context_tokens} tokens of context"
    return Finding(f"model {model.name}", "ok", text)


def _memory(served: ServedModels) -> Finding:
    """Of the host; a worker looks at its card itself, when it has one."""
    from tru_vlm.engine.memory import MemoryNeed, free_host_bytes, gib, host_memory_problem, need_of

    needs: dict[str, tuple[MemoryNeed, int, bool]] = {}
    for model in served.models:
        is_cuda = model.settings.device in {"auto", "cuda"} and _has_cuda()
        if need := need_of(model.settings, is_cuda=is_cuda):
            needs[model.name] = (need, model.settings.workers_per_device, is_cuda)
    free = free_host_bytes()
    if problem := host_memory_problem(needs, free):
        return Finding("memory", "failed" if served.models[0].settings.check_memory else "note", problem)
    if not needs:
        return Finding("memory", "note", f"{gib(free)} free; what the models need is known when their files are here")
    shown = ", ".join(f"{name} {gib(need.loading_bytes)}" for name, (need, _, _) in needs.items())
    return Finding("memory", "ok", f"{gib(free)} free; weights take {shown}")


def _has_cuda() -> bool:
    try:
        return bool(importlib.import_module("torch").cuda.is_available())
    except (ImportError, OSError):
        return False


def _disk(settings: Settings) -> Finding:
    from tru_vlm.launch import unwritable

    folder = settings.storage_dir
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if problem := unwritable(existing):
        return Finding("disk", "failed", f"STORAGE_DIR={folder}: cannot be written to ({problem})")
    free = shutil.disk_usage(existing).free
    text = f"STORAGE_DIR={folder}: {size(free)} free, {size(settings.min_free_bytes)} are to stay free"
    return Finding("disk", "ok" if free > settings.min_free_bytes else "failed", text)


def _port(settings: Settings) -> Finding:
    from tru_vlm.launch import port_problem

    problem = port_problem(settings)
    return Finding("port", "failed" if problem else "ok", problem or f"{settings.host}:{settings.port} is free")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _imports(name: str, module: str, found: str, *, is_needed: bool) -> Finding:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(name, "failed" if is_needed else "note", f"{found} is installed and does not load ({error})")
    return Finding(name, "ok", found)
