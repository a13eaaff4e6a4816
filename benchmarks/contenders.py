"""The servers that ``serving.py`` compares: how each is started, asked, and watched while it works.

Every contender is a process group of its own, answers questions about a video at a loopback URL, and is asked for the
same frames, question, sampling and number of tokens. Nothing here measures a ratio; ``serving.py`` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300
MAX_BATCH = 8
CONTEXT = 8192
VLLM_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


@dataclass(frozen=True)
class Question:
    """What is asked of every contender. num_frames and fps say the same in two ways; each server understands one."""

    video_url: str
    prompt: str
    max_tokens: int
    fps: float
    num_frames: int


@dataclass
class Piece:
    """Something that came back: the text of some tokens, or the counts at the end."""

    text: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


Ask = Callable[[httpx.AsyncClient, Question], AsyncIterator[Piece]]


@dataclass(frozen=True)
class Contender:
    """A server under test. ``command`` is followed by the port's option, or the environment's PORT says it."""

    name: str
    command: tuple[str, ...]
    ask: Ask
    ready_path: str = "/health"
    port_option: str | None = "--port"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A started contender."""

    contender: Contender
    base: str
    process: subprocess.Popen[bytes]

    def usage(self) -> tuple[float, int]:
        """CPU seconds and resident bytes (shared pages counted once, as proportional set size) of its processes."""
        seconds, resident = 0.0, 0
        parent = psutil.Process(self.process.pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
                resident += process.memory_full_info().pss
        return seconds, resident


@contextlib.contextmanager
def running(contender: Contender, folder: Path) -> Iterator[Running]:
    """Start it, wait until it answers, and end its whole process group afterwards.

    So it is too when this script is told to end, as by ``timeout``.
    """
    signal.signal(signal.SIGTERM, _exit)
    port = free_port()
    log = (folder / f"{contender.name.replace(' ', '-')}.log").open("wb")
    option = [contender.port_option, str(port)] if contender.port_option else []
    process = subprocess.Popen(
        [*contender.command, *option],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PORT": str(port), **contender.environment},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    server = Running(contender, f"http://127.0.0.1:{port}", process)
    try:
        _wait(server, Path(log.name))
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _exit(signum: int, _: object) -> None:
    raise SystemExit(128 + signum)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_answers(url: str, while_true: Callable[[], bool] = lambda: True) -> bool:
    """Poll until the URL answers with a success; False when it does not in time, or ``while_true`` ends first."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and while_true():
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        time.sleep(0.2)
    return False


def _wait(server: Running, log: Path) -> None:
    if wait_until_answers(server.base + server.contender.ready_path, while_true=lambda: server.process.poll() is None):
        return
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"{server.contender.name} did not start:\n{tail}")


# ---- how each is asked ----------------------------------------------------------------------------------------------


async def ask_ours(
    client: httpx.AsyncClient, question: Question, *, video_id: str | None = None, ignore_eos: bool = False
) -> AsyncIterator[Piece]:
    """Our native route, streaming. video_id: of the video, where the server keeps it. ignore_eos: the answer has
    exactly ``max_tokens`` tokens.
    """
    body = {
        **({"video_id": video_id} if video_id else {"video_url": question.video_url}),
        "prompt": question.prompt,
        "video_params": {"fps": question.fps},
        "generation_params": {"max_tokens": question.max_tokens, "temperature": 0.0, "ignore_eos": ignore_eos},
        "stream": True,
    }
    async for event, data in _events(client, "/v1/inference/url", body):
        if event == "delta":
            yield Piece(data["text"])
        elif event == "error":
            raise RuntimeError(data["error"]["message"])
        elif event == "done":
            usage = data["usage"]
            yield Piece(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])


def ask_chat(model: str, extra: Callable[[Question], dict[str, Any]]) -> Ask:
    """OpenAI's chat route, streaming; ``extra`` is what a server needs beside it to sample the same frames."""

    async def ask(client: httpx.AsyncClient, question: Question) -> AsyncIterator[Piece]:
        content = [
            {"type": "video_url", "video_url": {"url": question.video_url}},
            {"type": "text", "text": question.prompt},
        ]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": question.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra(question),
        }
        async for _, data in _events(client, "/v1/chat/completions", body):
            usage = data.get("usage") or {}
            delta = (data["choices"][0]["delta"].get("content") or "") if data.get("choices") else ""
            yield Piece(delta, usage.get("prompt_tokens"), usage.get("completion_tokens"))

    return ask


async def ask_stock(client: httpx.AsyncClient, question: Question) -> AsyncIterator[Piece]:
    """Stock LitServe's route; it does not stream."""
    body = {
        "video_url": question.video_url,
        "prompt": question.prompt,
        "max_tokens": question.max_tokens,
        "num_frames": question.num_frames,
    }
    reply = await client.post("/predict", json=body)
    reply.raise_for_status()
    answer = reply.json()
    yield Piece(answer["text"], prompt_tokens=answer["prompt_tokens"])


async def _events(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Server-sent events as (event, data)."""
    async with client.stream("POST", path, json=body) as reply:
        if reply.status_code != httpx.codes.OK:
            await reply.aread()
            raise RuntimeError(f"{reply.status_code}: {reply.text[:200]}")
        event = ""
        async for line in reply.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: ") and line != "data: [DONE]":
                yield event, json.loads(line.removeprefix("data: "))


# ---- the contenders -------------------------------------------------------------------------------------------------


def ours(checkpoint: Path, storage: Path) -> Contender:
    """Our server, as README starts it."""
    return Contender(
        "ours",
        (sys.executable, str(ROOT / "server.py")),
        ask_ours,
        ready_path="/v1/health",
        port_option=None,
        environment={
            "MODEL_PATH": str(checkpoint),
            "STORAGE_DIR": str(storage),
            "ALLOW_PRIVATE_URLS": "true",
            "MAX_BATCH_SIZE": str(MAX_BATCH),
            "LOG_LEVEL": "warning",
        },
    )


def ours_on_vllm(python: str, checkpoint: Path, storage: Path) -> Contender:
    """Our server with vLLM as its engine, set as the server of vLLM is."""
    plain = ours(checkpoint, storage)
    engine = {"MODEL_BACKEND": "vllm", "DTYPE": "float32", "CUDA_GRAPHS": "false", "MAX_CONTEXT_TOKENS": str(CONTEXT)}
    return replace(
        plain,
        name="ours on vLLM",
        command=(python, str(ROOT / "server.py")),
        environment={**plain.environment, **VLLM_ENVIRONMENT, **engine},
    )


def stock_litserve(python: str, checkpoint: Path) -> Contender:
    """A LitAPI as LitServe's documentation teaches it."""
    script = str(Path(__file__).with_name("stock_litserve.py"))
    command = (python, script, "--checkpoint", str(checkpoint), "--max-batch-size", str(MAX_BATCH))
    return Contender("stock LitServe", command, ask_stock)


def transformers_serve(python: str, checkpoint: Path) -> Contender:
    """Transformers' own server."""
    command = (python, "-m", "transformers.cli.transformers", "serve", str(checkpoint), "--dtype", "float32")
    return Contender(
        "transformers serve",
        (*command, "--device", "cpu"),
        ask_chat(str(checkpoint), lambda q: {"chat_template_kwargs": {"num_frames": q.num_frames, "fps": None}}),
    )


def vllm(python: str, checkpoint: Path, fps: float) -> Contender:
    """The server of vLLM, on its CPU build here. How it samples is said at its start: requests are not trusted to."""
    command = (python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--dtype", "float32")
    sampling = ("--media-io-kwargs", json.dumps({"video": {"fps": fps, "num_frames": -1}}))
    limits = ("--enforce-eager", "--max-model-len", str(CONTEXT), "--max-num-seqs", str(MAX_BATCH))
    return Contender(
        "vLLM",
        (*command, *limits, *sampling, "--served-model-name", "demo", "--host", "127.0.0.1"),
        ask_chat("demo", lambda _question: {}),
        environment=VLLM_ENVIRONMENT,
    )
