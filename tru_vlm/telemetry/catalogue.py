"""Every metric that this server exports: its name, kind, labels, buckets and a sentence.  It holds no numbers.

Names are vLLM's words behind ``tru_vlm_`` where vLLM has them, and the same for both engines.  ``docs/metrics.md`` is
generated from this file (``python -m tru_vlm.telemetry.reference``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "tru_vlm_"

Kind = Literal["counter", "gauge", "histogram"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)
FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 2048, 4096)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

MODEL = ("model_name", "variant")
WORKER = (*MODEL, "worker")


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of series.

    Attributes:
        word: the name behind the prefix, without a counter's ``_total``.
        kind: what it is.
        help: a sentence for people.
        labels: their names; each has few values, never an id or a URL.
        buckets: upper bounds of a histogram's buckets.
    """

    word: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """As it is exported; a histogram's series end in ``_bucket``, ``_sum`` and ``_count``."""
        return f"{PREFIX}{self.word}_total" if self.kind == "counter" else f"{PREFIX}{self.word}"


CATALOGUE: list[Metric] = []
"""All of them, in the order of the documentation."""


def model_labels(model_name: str, variant: str | None = None) -> dict[str, str]:
    """The labels of what belongs to a model.

    Args:
        model_name: the model, or the alias that a question asked for.
        variant: the model that answers; by default the model itself.
    """
    return {"model_name": model_name, "variant": model_name if variant is None else variant}


def _counter(word: str, text: str, *labels: str) -> Metric:
    return _listed(Metric(word, "counter", text, labels))


def _gauge(word: str, text: str, *labels: str) -> Metric:
    return _listed(Metric(word, "gauge", text, labels))


def _histogram(word: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Metric:
    return _listed(Metric(word, "histogram", text, labels, buckets))


def _listed(metric: Metric) -> Metric:
    CATALOGUE.append(metric)
    return metric


BUILD_INFO = _gauge("build_info", "Always 1; its label tells the version of the server.", "version")
MODEL_INFO = _gauge("model_info", "Always 1, for each model; its labels tell the engine.", *MODEL, "backend")

# HTTP
HTTP_REQUESTS = _counter(
    "http_requests",
    "HTTP exchanges that have ended, by route and status; 499 where the client left first. Paths that are no route are "
    "one label, `unmatched`.",
    "method",
    "route",
    "status",
)
HTTP_IN_PROGRESS = _gauge("http_requests_in_progress", "HTTP exchanges that have begun and not ended.")
REJECTIONS = _counter(
    "rejections",
    "Requests that were answered with a 4xx (429 too), by the error's code, before or after work on them began.",
    "route",
    "cause",
)

# Requests: questions that were opened
REQUESTS = _counter(
    "requests",
    "Questions that have ended, by the route that opened them: `success`, `abort` (the client left, or the server "
    "stopped), `rejected` (a 4xx that showed after it was opened) or `error`.",
    "route",
    "outcome",
    *MODEL,
)
REQUEST_SUCCESS = _counter(
    "request_success", "Questions that were answered, by the reason that ended the answer.", "finished_reason", *MODEL
)
REQUEST_FAILURES = _counter("request_failures", "Questions that ended with a 5xx, by the error's code.", "code", *MODEL)
REQUEST_ABORTS = _counter("request_aborts", "Questions that were stopped, by the stage they were in.", "stage", *MODEL)
NUM_OPEN = _gauge("num_requests_open", "Questions that were opened and have not ended, in whatever stage.")
NUM_RUNNING = _gauge("num_requests_running", "Requests in a worker's batch.", *WORKER)
NUM_WAITING = _gauge("num_requests_waiting", "Requests with their frames ready that wait for a place.", *MODEL)

# Stages of a question
TTFT = _histogram("time_to_first_token_seconds", "From the receipt of a question to its first token.", *MODEL)
ITL = _histogram(
    "inter_token_latency_seconds", "Between two tokens of an answer, as they come in.", *MODEL, buckets=TOKEN_SECONDS
)
E2E = _histogram("e2e_request_latency_seconds", "From the receipt of a question to the end of its answer.", *MODEL)
FETCH = _histogram("request_fetch_time_seconds", "Fetching a question's URLs.", *MODEL)
PROBE = _histogram("request_probe_time_seconds", "Looking into a question's files.", *MODEL)
VIDEO_DECODE = _histogram(
    "request_video_decode_time_seconds", "Getting a question's frames: from a cache, or decoded.", *MODEL
)
QUEUE = _histogram("request_queue_time_seconds", "Waiting for a worker, and there for a place in the batch.", *MODEL)
PREPROCESS = _histogram("request_preprocess_time_seconds", "Tokenizing, patches, and on hf the vision tower.", *MODEL)
PREFILL = _histogram("request_prefill_time_seconds", "The model's work on the prompt.", *MODEL)
DECODE = _histogram("request_decode_time_seconds", "From the first token to the last.", *MODEL)
PROMPT_TOKENS_HISTOGRAM = _histogram(
    "request_prompt_tokens", "Tokens of a question's prompt, visual ones included.", *MODEL, buckets=TOKENS
)
VISUAL_TOKENS = _histogram("request_visual_tokens", "Visual tokens of a question.", *MODEL, buckets=TOKENS)
GENERATION_TOKENS_HISTOGRAM = _histogram("request_generation_tokens", "Tokens of an answer.", *MODEL, buckets=TOKENS)
NUM_FRAMES = _histogram("request_frames", "Frames that a question's media were sampled to.", *MODEL, buckets=FRAMES)

# Jobs
JOBS = _gauge(
    "jobs", "Jobs, by what they are and where they are; those that have ended until they expire.", "kind", "status"
)
JOB_ITEMS = _counter("job_items", "Items of jobs that have ended: `succeeded` or `failed`.", "kind", "outcome")
WEBHOOK_DELIVERIES = _counter(
    "webhook_deliveries",
    "Attempts to tell a job's end: `delivered`, `retried` (not taken, and sent again later) or `failed` (given up).",
    "outcome",
)

# Engine
BATCH_SIZE = _histogram("batch_size", "Requests that got a token in one step of a worker.", *MODEL, buckets=ROWS)
ENGINE_STEPS = _counter("engine_steps", "Steps of the model.", *WORKER)
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens of requests that were admitted.", *WORKER)
COMPUTED_PROMPT_TOKENS = _counter(
    "prompt_tokens_computed", "Prompt tokens that the model was run on; the others were reused.", *WORKER
)
GENERATION_TOKENS = _counter("generation_tokens", "Tokens that were generated.", *WORKER)
DRAFT_TOKENS = _counter("spec_decode_num_draft_tokens", "Tokens that were drafted for the model to check.", *WORKER)
ACCEPTED_DRAFT_TOKENS = _counter(
    "spec_decode_num_accepted_tokens", "Draft tokens that the model would have said, and answers went on with.", *WORKER
)
KV_CACHE_USAGE = _gauge("kv_cache_usage_perc", "Share of the KV cache that running requests hold; 1 is all.", *WORKER)
KV_CACHE_TOKENS = _gauge("kv_cache_tokens", "Size of the KV cache, in tokens.", *WORKER)
DEVICE_MEMORY = _gauge(
    "device_memory_bytes", "Memory that a worker has taken on its device; on a CPU, resident.", *WORKER
)
PREFIX_QUERIES = _counter("prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache.", *WORKER)
PREFIX_HITS = _counter("prefix_cache_hits", "Prompt tokens that were found there.", *WORKER)
MM_QUERIES = _counter(
    "mm_cache_queries", "Temporal patches that were looked up in the feature cache (vLLM: its media cache).", *WORKER
)
MM_HITS = _counter("mm_cache_hits", "Temporal patches that were found there.", *WORKER)
WORKER_STATE = _gauge("worker_state", "1 for the state that a worker is in: `ready` or `starting`.", *WORKER, "state")
WORKER_RESTARTS = _counter("worker_restarts", "How often a worker died.", *WORKER)
AFFINITY = _counter(
    "affinity",
    "Requests given to a worker: to one that holds their video (`hit`), to another (`diverted`), or held by none "
    "(`miss`).",
    "result",
    *MODEL,
)

# Frames, files and caches
FRAME_CACHE_REQUESTS = _counter(
    "frame_cache_requests",
    "Media whose frames were wanted: found in `memory` or on `disk`, `joined` to a decode under way, or a `miss`.",
    "result",
)
URL_CACHE_QUERIES = _counter("url_cache_queries", "URLs that were looked up in the cache of fetched files.")
URL_CACHE_HITS = _counter("url_cache_hits", "URLs whose unchanged file was there.")
CACHE_BYTES = _gauge(
    "cache_bytes",
    "Size of what is cached, by tier: `frame_memory`, `frame_disk`, `url`, `feature`, `prefix`. Of all workers; "
    "vLLM does not tell those of the last two.",
    "tier",
)
CACHE_EVICTIONS = _counter(
    "cache_evictions",
    "What gave way for space: entries of `frame` (memory and disk), temporal patches of `feature`, blocks of `prefix`; "
    "vLLM does not tell of the last two.",
    "tier",
)
FRAME_CACHE_DEMOTIONS = _counter("frame_cache_demotions", "Entries that moved from memory to disk for space.")
DECODE_PROCESSES = _gauge("video_decode_processes", "Decode processes that are ready or at work.")
DECODE_BUSY = _gauge("video_decode_busy", "Decode processes at work.")
DECODE_WAITING = _gauge("video_decode_waiting", "Files that wait for a decode process.")
PROBES = _counter("video_probes", "Files that were looked into; content that was seen before is not looked into again.")
DECODES = _counter("video_decodes", "Files that were decoded (`success`), or read in vain (`failed`).", "outcome")
DECODE_KILLED = _counter(
    "video_decode_killed", "Decode processes that were ended at work: time limit, or nobody waited any more."
)
DECODE_RESTARTS = _counter("video_decode_restarts", "Decode processes that were started in place of another.")
SPOOL_BYTES = _gauge("spool_bytes", "Disk space of videos that are being received, decoded or remembered by URL.")
SPOOL_LIMIT_BYTES = _gauge("spool_limit_bytes", "The most that it may be.")
