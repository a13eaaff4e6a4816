"""Every setting: name, default, unit, bounds and a sentence.  The only reader of the environment.

Settings are built once, in ``server.py``, and passed inwards as arguments.  ``env.template`` is generated
from this file (``python -m tru_vlm.settings``), and so is the configuration page; tests fail when they drift.
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
SECRETS = ("api_keys", "session_secret", "redis_url", "otel_exporter_otlp_headers")
"""Never shown: not in an error, a log or health.  Each may stand in a file, named by its ``…_FILE``."""

_LEAST_SECRET_CHARACTERS = 32
_ORIGIN = re.compile(r"https?://[^/?#@\s]+", re.IGNORECASE)


class SettingsError(ValueError):
    """A setting cannot be used; the text names the variable, the value and what is accepted."""


class Settings(BaseSettings):
    """The server's configuration.  Each field is an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="forbid", frozen=True, env_ignore_empty=True
    )

    # Model
    model_path: str = Field("demo", description="A Qwen3-VL folder or hub id; 'demo' is the bundled demo model.")
    model_name: str | None = Field(
        None, description="Name under which the model answers; by default the last part of MODEL_PATH."
    )
    model_backend: Literal["hf", "vllm"] = Field("hf", description="Engine: Transformers (hf) or vLLM.")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto", description="Where the model runs; auto takes CUDA, else MPS, else the CPU."
    )
    devices: Annotated[int, Field(ge=0, le=64)] = Field(0, description="How many CUDA devices to use; 0 takes all.")
    workers_per_device: Annotated[int, Field(ge=1, le=16)] = Field(1, description="Worker processes per device.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Weights' type; auto is bfloat16 on a GPU and float32 on the CPU."
    )
    quantization: Literal["none", "int4", "int8", "fp8"] = Field(
        "none",
        description=(
            "Type of the text layers' weights: int4 and int8 by bitsandbytes, fp8 on CUDA cards from 8.9 on; vLLM has "
            "no int8."
        ),
    )
    use_flash_attn: bool = Field(True, description="Use flash-attn 2 on CUDA when it is installed; else SDPA.")
    cuda_graphs: bool = Field(
        True, description="On CUDA, replay decode steps as CUDA graphs, captured at the start. Not yet tried on a card."
    )
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="Share of a GPU's memory that vLLM takes."
    )
    vllm_tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="GPUs over which vLLM splits the model; a worker has as many."
    )
    vllm_engine_args: str = Field(
        "{}",
        description=(
            "Further arguments of vLLM's AsyncEngineArgs as a JSON object of name and value, for example "
            '{"kv_cache_dtype": "fp8"}.'
        ),
    )

    # Several models
    models: str = Field(
        "{}",
        description=(
            "Several models in one server, a JSON object of name and settings, for example "
            '{"large": {"path": "Qwen/Qwen3-VL-8B-Instruct", "devices": [0]}, "small": {"quantization": "int4"}}. '
            "What an entry leaves out is as set here for all; docs/adr/0018 lists its fields. "
            "Empty: the one model of MODEL_PATH."
        ),
    )
    model_aliases: str = Field(
        "{}",
        description=(
            "Names that stand for one of several models, a JSON object of alias and the models' weights, for example "
            '{"chat": {"large": 9, "small": 1}}. The same video or key stays with its model.'
        ),
    )
    default_model: str | None = Field(
        None, description="Model or alias that answers a request which names none; by default the first model."
    )

    # Sampling of videos
    default_video_fps: Annotated[float, Field(gt=0, le=60)] = Field(
        2.0, description="Frames per second that are sampled when a request does not say."
    )
    default_max_frames: Annotated[int, Field(ge=2, le=16384)] = Field(
        768, description="Most frames that are sampled when a request does not say."
    )
    image_patch_size: Annotated[int, Field(ge=2, le=64)] = Field(
        16, description="Side of a vision patch in pixels; 16 for Qwen3-VL. Must agree with the model."
    )

    # Generation
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        2048, description="Most tokens of an answer: the default, and the most a request may ask for."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(
        0.7, description="Sampling temperature when a request does not say; 0 is greedy."
    )

    # Engine
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        8, description="Most requests that a worker runs at once."
    )
    max_context_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="Most tokens of prompt, frames and answer together; 0 takes the model's own limit."
    )
    kv_cache_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="Size of the KV cache in tokens, all requests together; 0 sizes it by free memory."
    )
    prefill_chunk_tokens: Annotated[int, Field(ge=16, le=65536)] = Field(
        512, description="Most prompt tokens that one step works on, so that running answers are not stalled."
    )
    num_speculative_tokens: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None,
        description=(
            "Most tokens of an answer that are drafted by prompt lookup for the model to check in one step; answers "
            "stay the same. 0 drafts none; without a number 5 by the hf engine on a CPU, else none."
        ),
    )
    prefix_cache: bool = Field(
        True,
        description="Keep keys and values of past prompts and answers, as the KV cache has room, for reuse.",
    )
    feature_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        256 * MEBIBYTE, description="Device memory for vision features by content, in bytes; 0 keeps none."
    )

    check_memory: bool = Field(
        True,
        description=(
            "Refuse to start a model whose weights and KV cache need more than the memory that is free, as estimated "
            "from its files; false starts all the same."
        ),
    )

    # Limits
    max_queued_requests: Annotated[int, Field(ge=1, le=100_000)] = Field(
        64, description="Requests that may wait; one more is refused with 429."
    )
    request_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        600.0, description="Wall clock over a whole request, in seconds."
    )
    max_prompt_characters: Annotated[int, Field(ge=1)] = Field(100_000, description="Longest prompt, in characters.")
    max_request_media: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="Most videos and images in one conversation."
    )
    max_json_bytes: Annotated[int, Field(ge=1024)] = Field(
        64 * MEBIBYTE, description="Largest JSON body (data URIs included), in bytes."
    )
    max_upload_bytes: Annotated[int, Field(ge=1)] = Field(
        2 * GIBIBYTE, description="Largest video, uploaded or fetched, in bytes."
    )
    max_spool_bytes: Annotated[int, Field(ge=1)] = Field(
        16 * GIBIBYTE, description="Disk space for all videos that are being received or decoded, in bytes."
    )
    min_free_bytes: Annotated[int, Field(ge=0)] = Field(
        GIBIBYTE, description="Disk space that uploads and frames leave free, in bytes."
    )
    max_video_seconds: Annotated[float, Field(gt=0)] = Field(4 * 3600.0, description="Longest video, in seconds.")
    max_video_frames: Annotated[int, Field(ge=2)] = Field(4096, description="Most frames a request may sample.")
    max_source_pixels: Annotated[int, Field(ge=1)] = Field(
        8192 * 8192, description="Largest width x height of a source frame or image, in pixels."
    )

    # Getting and decoding videos
    allow_private_urls: bool = Field(False, description="Fetch from private and loopback addresses too.")
    allowed_url_hosts: str = Field(
        "", description="Hosts to fetch from, separated by commas (*.example.com takes subdomains); empty allows all."
    )
    url_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        GIBIBYTE, description="Disk space for fetched videos, so that an unchanged URL is not fetched twice, in bytes."
    )
    fetch_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        120.0, description="Wall clock for fetching one URL, in seconds."
    )
    video_reader: Literal["auto", "torchcodec", "pyav", "torchvision", "decord"] = Field(
        "auto",
        description=(
            "Video decoder; auto takes PyAV, and torchcodec on a card. torchvision (up to 0.25) and decord are "
            "taken only when named here, and installed by you."
        ),
    )
    video_decode_device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description=(
            "Where videos are decoded; cuda takes NVIDIA's decoder, through a torchcodec that is built for CUDA, and "
            "some of the card's memory for each decode process. Not yet tried on a card."
        ),
    )
    decode_processes: Annotated[int, Field(ge=1, le=256)] = Field(
        2, description="Child processes that decode videos, hence videos decoded at once."
    )
    decode_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        300.0, description="Wall clock for decoding one video, in seconds."
    )
    decode_memory_bytes: Annotated[int, Field(ge=2 * GIBIBYTE)] = Field(
        16 * GIBIBYTE,
        description=(
            "Address space of one decode process, in bytes; with VIDEO_DECODE_DEVICE=cuda, where addresses cannot be "
            "bounded, the memory that it writes to."
        ),
    )
    storage_dir: Path = Field(
        Path("~/.cache/tru-vlm"), description="Folder for videos that are kept, uploads in progress and sampled frames."
    )
    storage_shared: bool = Field(
        False,
        description=(
            "Whether STORAGE_DIR lies on a file system that several machines have mounted. Its databases then do "
            "without write-ahead logs, which need memory that all who write share."
        ),
    )
    max_library_bytes: Annotated[int, Field(ge=0)] = Field(
        16 * GIBIBYTE,
        description="Disk space for videos that are kept, resumable uploads included, in bytes; one more gets a 507.",
    )
    video_ttl_seconds: Annotated[int, Field(ge=0)] = Field(
        7 * 24 * 3600,
        description="How long a video is kept after its last use, in seconds; 0 keeps it until it is deleted.",
    )
    max_chats: Annotated[int, Field(ge=0)] = Field(
        10_000, description="Most chats that are kept; one more gets a 507. They do not expire."
    )
    upload_ttl_seconds: Annotated[int, Field(ge=60)] = Field(
        24 * 3600, description="How long a resumable upload is kept after its last bytes, in seconds."
    )
    frame_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        2 * GIBIBYTE, description="Disk space for sampled frames, in bytes; the least recently used go first."
    )
    frame_cache_memory_bytes: Annotated[int, Field(ge=0)] = Field(
        256 * MEBIBYTE,
        description=(
            "Shared memory (/dev/shm) for sampled frames, in bytes; what has no room there, or was used least "
            "recently, is on disk. At most half of what is free is taken; 0 takes none."
        ),
    )

    # Jobs
    job_concurrency: Annotated[int, Field(ge=1, le=1024)] = Field(
        2, description="Items of jobs that are asked at once; they leave the last free row of a batch to others."
    )
    max_job_items: Annotated[int, Field(ge=1, le=1_000_000)] = Field(10_000, description="Most items of one job.")
    max_queued_jobs: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        1000, description="Jobs that may be unfinished at once; one more is refused with 429."
    )
    job_ttl_seconds: Annotated[int, Field(ge=0)] = Field(
        7 * 24 * 3600,
        description="How long a job and its results are kept after its end, in seconds; 0 keeps them until deleted.",
    )
    webhook_max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        10, description="How often the message about a job's end is sent at most, until its receiver takes it."
    )
    webhook_retry_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        5.0, description="Wait before it is sent again, in seconds; four times as long each time, up to six hours."
    )
    webhook_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = Field(
        15.0, description="Wall clock of one attempt, in seconds."
    )

    # Assistants
    mcp_endpoint: bool = Field(
        False, description="Offer the tools for assistants at /mcp, too (MCP over HTTP); needs the extra `mcp`."
    )

    # Access.  A secret is given as it is, or as a file that holds it (Docker's and Kubernetes' way).
    api_keys_file: Path | None = Field(None, description="A file that holds API_KEYS.")
    api_keys: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description=(
            "Who may use the server: JSON objects, one a line or in an array, as `python -m tru_vlm.api.keys new NAME` "
            "prints them; without any, everybody may."
        ),
    )
    session_secret_file: Path | None = Field(None, description="A file that holds SESSION_SECRET.")
    session_secret: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description=(
            "Signs the page's sign-in, at least 32 characters; by default drawn at each start. Servers behind one "
            "address need the same."
        ),
    )
    session_hours: Annotated[float, Field(gt=0, le=720)] = Field(
        12.0, description="How long the page stays signed in, in hours."
    )
    redis_url_file: Path | None = Field(None, description="A file that holds REDIS_URL.")
    redis_url: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description="Where rates are counted for several servers together, redis://… or rediss://…; else in memory.",
    )
    rate_limit_requests_per_minute: Annotated[int, Field(ge=0)] = Field(
        0, description="Calls that a key, or an address where there are no keys, may make in a minute; 0 for no limit."
    )
    rate_limit_video_seconds_per_minute: Annotated[int, Field(ge=0)] = Field(
        0, description="Seconds of video that it may ask about in a minute; 0 for no limit."
    )
    max_concurrent_requests_per_client: Annotated[int, Field(ge=0)] = Field(
        0, description="Questions that it may have open at once; 0 for no limit."
    )
    allowed_hosts: str = Field(
        "",
        description=(
            "Names under which the server is reached, separated by commas; *.example.com takes subdomains, * any. By "
            "default localhost on 127.0.0.1, and any where it listens to the network."
        ),
    )
    allowed_origins: str = Field(
        "",
        description=(
            "Origins of other web pages that may call the server from a browser (https://app.example.com), separated "
            "by commas; by default its own page only."
        ),
    )
    trusted_proxies: str = Field(
        "",
        description=(
            "Addresses or networks of reverse proxies, separated by commas, whose X-Forwarded-For and "
            "X-Forwarded-Proto are believed."
        ),
    )
    client_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        30.0, description="Longest wait for a request's head, and for the next bytes of its body, in seconds."
    )

    # Server
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field(  # noqa: S104 - accepted when the operator asks for it
        "127.0.0.1", description="Address to listen on; 0.0.0.0 and :: are open to the network."
    )
    port: Annotated[int, Field(ge=1024, le=65535)] = Field(8000, description="Port to listen on.")
    drain_seconds: Annotated[int, Field(ge=0)] = Field(
        30, description="On SIGTERM, how long running answers may go on, in seconds. New ones are refused meanwhile."
    )
    max_socket_requests: Annotated[int, Field(ge=1, le=10_000)] = Field(
        16, description="Most requests at once on one WebSocket."
    )
    socket_idle_seconds: Annotated[float, Field(gt=0)] = Field(
        300.0, description="A WebSocket on which nothing runs and nothing is asked is closed after this, in seconds."
    )
    socket_ping_seconds: Annotated[float, Field(gt=0)] = Field(
        20.0,
        description=(
            "How often a WebSocket's client is pinged, and how long it has to answer, in seconds; one that does not, "
            "or does not read, is dropped and its requests are stopped."
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field(
        "text", description="How a line of the log looks: text for people, or one JSON object."
    )

    # Traces.  OpenTelemetry's own names; nothing else of OTEL_* is meant to be set.
    otel_exporter_otlp_endpoint: str = Field(
        "",
        description=(
            "Where traces are sent, by OTLP over HTTP: a collector's base URL, such as http://localhost:4318. Needs "
            "the extra `tracing`. Empty: nothing is traced."
        ),
    )
    otel_exporter_otlp_headers_file: Path | None = Field(
        None, description="A file that holds OTEL_EXPORTER_OTLP_HEADERS."
    )
    otel_exporter_otlp_headers: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description="Headers that are sent to it, as name=value separated by commas, values URL-encoded.",
    )
    otel_service_name: str = Field("tru-vlm", description="Under which name traces are shown.")
    otel_traces_sampler_arg: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Share of the requests that are traced; where a client sends a traceparent, that decides."
    )

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        return value

    @field_validator("otel_exporter_otlp_headers")
    @classmethod
    def _are_headers(cls, value: SecretStr) -> SecretStr:
        if not all("=" in item.strip("=") for item in split_list(value.get_secret_value())):
            raise ValueError("each must be name=value")
        return value

    @field_validator("video_decode_device")
    @classmethod
    def _only_torchcodec_decodes_on_cuda(cls, value: str, info: ValidationInfo) -> str:
        reader = info.data.get("video_reader")
        if value == "cuda" and reader not in ("auto", "torchcodec"):
            raise ValueError(f"only torchcodec decodes there, and VIDEO_READER is {reader}")
        return value

    @field_validator("vllm_engine_args")
    @classmethod
    def _is_an_object(cls, value: str) -> str:
        try:
            is_object = isinstance(json.loads(value), dict)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON ({error})") from error
        if not is_object:
            raise ValueError("it is JSON, and no object")
        return value

    @field_validator(*SECRETS)
    @classmethod
    def _read_file(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        """The secret, or what its file holds."""
        name = f"{info.field_name}_file"
        file = info.data.get(name)
        if file is None:
            return value
        if value.get_secret_value():
            raise ValueError(f"{name.upper()} is set too; give one of them")
        try:
            return SecretStr(file.expanduser().read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ValueError(f"{name.upper()}={file} cannot be read ({reason})") from None

    @field_validator("session_secret")
    @classmethod
    def _is_long(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < _LEAST_SECRET_CHARACTERS:
            raise ValueError(f"it is shorter than {_LEAST_SECRET_CHARACTERS} characters")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not value.get_secret_value().startswith(("redis://", "rediss://")):
            raise ValueError("it must begin with redis:// or rediss://")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        for origin in split_list(value):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin, which is scheme://host or scheme://host:port, and no more")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for network in split_list(value):
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError(f"{network!r} is neither an address nor a network, such as 10.0.0.0/8") from None
        return value

    @field_validator("storage_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser().absolute()


def split_list(value: str) -> list[str]:
    """The items of a setting that is a list."""
    return [item for item in map(str.strip, value.split(",")) if item]


def load_settings(env_file: Path | str | None = ".env", **overrides: object) -> Settings:
    """Read settings from the environment and a ``.env`` file; keyword arguments win.

    Raises:
        SettingsError: if a value is misspelt or out of range, or ``.env`` has an unknown name.
    """
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors())) from error


def _explain(item: object) -> str:
    """One sentence for one of pydantic's errors: the variable, the value, what is accepted."""
    assert isinstance(item, dict)  # noqa: S101 - pydantic's own shape
    name = str(item["loc"][0]) if item["loc"] else "?"
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{name.upper()}: there is no such setting; see env.template for all names."
    value = "(not shown)" if name in SECRETS else item["input"]
    return f"{name.upper()}={value!s}: {item['msg']}. {field.description} Default: {_show(field.default)}."


def _show(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def env_template() -> str:
    """The text of ``env.template``: every setting with its sentence and default, commented out."""
    lines = ["# Settings of TRU V2. Copy to .env and change what you need; every line shows the default.", ""]
    for name, text, default in setting_lines():
        lines += [f"# {text}", f"# {name}={default}".rstrip(), ""]
    return "\n".join(lines)


def setting_lines() -> Iterator[tuple[str, str, str]]:
    """Every setting: variable, sentence with what is accepted, and default."""
    for name, field in Settings.model_fields.items():
        yield name.upper(), f"{field.description}{_bounds(field)}", _show(field.default)


def _bounds(field: FieldInfo) -> str:
    """The accepted values, as far as the field's type tells them."""
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return " One of: " + ", ".join(choices) + "."
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    rules = [
        f"{sign} {getattr(rule, key)}" for rule in field.metadata for key, sign in signs.items() if hasattr(rule, key)
    ]
    return f" ({', '.join(rules)})" if rules else ""


if __name__ == "__main__":
    sys.stdout.write(env_template())
