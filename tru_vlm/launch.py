"""From settings to a running server, with a clear sentence when it cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tru_vlm.processor.profile import ModelProfile, ModelProfileError, load_profile
from tru_vlm.served_models import ServedModels, served_models
from tru_vlm.settings import Settings, SettingsError, load_settings
from tru_vlm.telemetry.logs import adopt_libraries, configure_logs
from tru_vlm.telemetry.spans import tracing_problem

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_TRIED_BYTES = 1 << 16


def main(**overrides: object) -> int:
    """Run the server until it is stopped.

    Args:
        overrides: settings by name, which win over the environment.

    Returns:
        The exit status: 0 after a drain, 2 for a wrong setting, 1 for anything else that keeps it from starting.
    """
    try:
        settings = load_settings(".env", **overrides)
        served = served_models(settings)
    except SettingsError as error:
        return _refuse(str(error), 2)
    configure_logs(settings.log_format, settings.log_level)
    if reason := storage_problem(settings) or port_problem(settings):
        return _refuse(reason, 1, settings)
    if reason := tracing_problem(settings) or backend_problem(served) or decoding_problem(settings):
        return _refuse(reason, 2, settings)
    return _serve(settings, served)


def _serve(settings: Settings, served: ServedModels) -> int:
    # LitServe and the model's code take a second to import: wrong settings are told before that.
    from tru_vlm.api.app import build_server
    from tru_vlm.api.security.install import LOOPBACK, http_options, load_keyring
    from tru_vlm.api.websocket.protocol import socket_options
    from tru_vlm.api.workers.placement import StartError

    try:
        keyring = load_keyring(settings)
        profiles = _load_profiles(served)
    except ValueError as error:
        return _refuse(str(error), 2, settings)
    if not keyring and settings.host != LOOPBACK:
        logger.warning(
            "HOST=%s and no API_KEYS: everybody who reaches port %d may use this server. "
            "`python -m tru_vlm.api.keys new NAME` makes a key.",
            settings.host,
            settings.port,
        )
    with _private_folder() as sockets:
        try:
            adopt_libraries()
            server = build_server(settings, served, profiles, keyring, sockets)
            server.serve(
                host=settings.host,
                port=settings.port,
                drain_seconds=settings.drain_seconds,
                log_level=settings.log_level,
                on_started=lambda: _announce_when_ready(settings, served),
                uvicorn_options={**http_options(settings), **socket_options(settings)},
            )
        except StartError as error:
            return _refuse(str(error), 1, settings)
    return 0


def _load_profiles(served: ServedModels) -> dict[str, ModelProfile]:
    """What each model accepts, by its name.

    Raises:
        ModelProfileError: naming the setting.
    """
    profiles: dict[str, ModelProfile] = {}
    for model in served.models:
        try:
            profile = profiles[model.name] = load_profile(
                model.settings.model_path, max_context_tokens=model.settings.max_context_tokens
            )
        except ModelProfileError as error:
            if len(served.models) == 1:
                raise
            text = str(error).removeprefix("MODEL_PATH=")
            raise ModelProfileError(f"MODELS: {model.name}.path is {text}") from error
        if model.settings.image_patch_size != profile.patch_size:
            raise ModelProfileError(
                f"IMAGE_PATCH_SIZE={model.settings.image_patch_size}: the vision patches of {model.name} have "
                f"{profile.patch_size} pixels a side; set it to that."
            )
    return profiles


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder that only this user can enter (mode 0700), short enough for socket paths (108 bytes)."""
    with tempfile.TemporaryDirectory(prefix="tru-vlm-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def storage_problem(settings: Settings) -> str | None:
    """Why nothing can be stored, or None; the folder is made."""
    folder = settings.storage_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = unwritable(folder)
    except OSError as error:
        reason = error.strerror
    if reason is None:
        return None
    return f"STORAGE_DIR={folder}: it cannot be written to ({reason}). Give a folder in which this user may write."


def unwritable(folder: Path) -> str | None:
    """Why no file can be written in a folder, or None."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"\0" * _TRIED_BYTES)
    except OSError as error:
        return error.strerror
    return None


def port_problem(settings: Settings) -> str | None:
    """Why the port cannot be had, or None."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return f"PORT={settings.port}: cannot listen on {settings.host} ({error.strerror}). Choose another PORT."
    return None


def backend_problem(served: ServedModels) -> str | None:
    """Why the engine cannot be had, or None; told now rather than by every worker."""
    if all(model.settings.model_backend == "hf" for model in served.models):
        return None
    from tru_vlm.engine.vllm.installed import vllm_version

    try:
        vllm_version()
    except ValueError as error:
        return str(error)
    return None


def decoding_problem(settings: Settings) -> str | None:
    """Why videos cannot be decoded as the settings name it, or None.

    A decode process tries it, now rather than after a large model has loaded.  The automatic choice always works.
    """
    if settings.video_reader == "auto" and settings.video_decode_device == "cpu":
        return None
    from tru_vlm.video.decode_pool import PoolStartError, try_decode_process

    trial = try_decode_process(settings.decode_memory_bytes, settings.video_reader, device=settings.video_decode_device)
    try:
        asyncio.run(trial)
    except PoolStartError as error:
        return str(error)
    return None


def _announce_when_ready(settings: Settings, served: ServedModels) -> None:
    """Print the page's address once it answers."""
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 - compared, not bound
    address = f"http://{host}:{settings.port}"
    names = ", ".join(model.name for model in served.models)
    model = f"model: {names}" if len(served.models) == 1 else f"models: {names}"

    def wait() -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/v1/health", timeout=5):  # noqa: S310
                if settings.log_format == "json":
                    logger.info("ready at %s (%s)", address, model)
                    return
                sys.stdout.write(f"\n  Ask a video a question ({model}):  {address}/\n\n")
                sys.stdout.flush()
                return

    threading.Thread(target=wait, name="announce", daemon=True).start()


def _refuse(reason: str, status: int, settings: Settings | None = None) -> int:
    if settings is not None and settings.log_format == "json":
        logger.critical("The server cannot start. %s", reason)
    else:
        sys.stderr.write(f"The server cannot start.\n{reason}\n")
    return status
