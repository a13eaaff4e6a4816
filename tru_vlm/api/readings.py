"""What the server's parts tell when metrics or health ask: gauges, and counters that the parts keep themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tru_vlm
from tru_vlm.api.pipeline.models import Model
from tru_vlm.api.service import InferenceService
from tru_vlm.api.workers.pool import WorkerState
from tru_vlm.engine.base import EngineStats
from tru_vlm.telemetry import catalogue
from tru_vlm.telemetry.catalogue import Metric, model_labels
from tru_vlm.telemetry.metrics import Reading

_ENGINE_TOTALS: tuple[tuple[Metric, str], ...] = (
    (catalogue.ENGINE_STEPS, "num_steps"),
    (catalogue.PROMPT_TOKENS, "num_prompt_tokens"),
    (catalogue.COMPUTED_PROMPT_TOKENS, "num_computed_prompt_tokens"),
    (catalogue.GENERATION_TOKENS, "num_generated_tokens"),
    (catalogue.DRAFT_TOKENS, "num_draft_tokens"),
    (catalogue.ACCEPTED_DRAFT_TOKENS, "num_accepted_draft_tokens"),
    (catalogue.PREFIX_QUERIES, "prefix_cache_queries"),
    (catalogue.PREFIX_HITS, "prefix_cache_hits"),
    (catalogue.MM_QUERIES, "mm_cache_queries"),
    (catalogue.MM_HITS, "mm_cache_hits"),
)
_WORKER_STATES = ("ready", "starting")


@dataclass(frozen=True, slots=True)
class Readings:
    """Looks at a service; each iteration is a new look."""

    service: InferenceService

    def __iter__(self) -> Iterator[Reading]:
        """Every series that is read rather than counted."""
        service = self.service
        yield Reading(catalogue.BUILD_INFO, 1, {"version": tru_vlm.__version__})
        yield Reading(catalogue.NUM_OPEN, service.num_open, {})
        for model in service.models:
            yield from _model(model)
        yield from self._device_caches()
        yield from self._frames()
        yield from self._files()

    def by_word(self) -> dict[str, Any]:
        """For health: a number for each metric without labels, else a list of labels and numbers."""
        found: dict[str, Any] = {}
        for reading in self:
            word = reading.metric.name.removeprefix(catalogue.PREFIX)
            if reading.labels:
                found.setdefault(word, []).append({**reading.labels, "value": reading.value})
            else:
                found[word] = reading.value
        return found

    def _device_caches(self) -> Iterator[Reading]:
        states = [state for model in self.service.models for state in model.workers.states()]
        known = [stats for state in states if (stats := state.stats)]
        yield Reading(catalogue.CACHE_BYTES, sum(s.mm_cache_bytes for s in known), {"tier": "feature"})
        yield Reading(catalogue.CACHE_BYTES, sum(s.prefix_cache_bytes for s in known), {"tier": "prefix"})
        for tier, name in (("feature", "mm_cache_evictions"), ("prefix", "prefix_cache_evictions")):
            number = sum(state.totals[name] for state in states)
            yield Reading(catalogue.CACHE_EVICTIONS, number, {"tier": tier})

    def _frames(self) -> Iterator[Reading]:
        stats = self.service.videos.stats()
        pool, cache = stats.pool, stats.cache
        for result, number in (
            ("memory", cache.num_memory_hits),
            ("disk", cache.num_disk_hits),
            ("joined", cache.num_joined),
            ("miss", cache.num_misses),
        ):
            yield Reading(catalogue.FRAME_CACHE_REQUESTS, number, {"result": result})
        yield Reading(catalogue.CACHE_BYTES, cache.memory_bytes, {"tier": "frame_memory"})
        yield Reading(catalogue.CACHE_BYTES, cache.disk_bytes, {"tier": "frame_disk"})
        yield Reading(catalogue.CACHE_EVICTIONS, cache.num_evictions, {"tier": "frame"})
        yield Reading(catalogue.FRAME_CACHE_DEMOTIONS, cache.num_demotions, {})
        yield Reading(catalogue.DECODE_PROCESSES, pool.num_processes, {})
        yield Reading(catalogue.DECODE_BUSY, pool.num_busy, {})
        yield Reading(catalogue.DECODE_WAITING, pool.num_waiting, {})
        yield Reading(catalogue.PROBES, pool.num_probed, {})
        yield Reading(catalogue.DECODES, pool.num_decoded, {"outcome": "success"})
        yield Reading(catalogue.DECODES, pool.num_failed, {"outcome": "failed"})
        yield Reading(catalogue.DECODE_KILLED, pool.num_killed, {})
        yield Reading(catalogue.DECODE_RESTARTS, pool.num_restarts, {})

    def _files(self) -> Iterator[Reading]:
        urls, spool = self.service.url_cache, self.service.spool
        yield Reading(catalogue.URL_CACHE_QUERIES, urls.num_queries, {})
        yield Reading(catalogue.URL_CACHE_HITS, urls.num_hits, {})
        yield Reading(catalogue.CACHE_BYTES, urls.used_bytes, {"tier": "url"})
        yield Reading(catalogue.SPOOL_BYTES, spool.used_bytes, {})
        yield Reading(catalogue.SPOOL_LIMIT_BYTES, self.service.settings.max_spool_bytes, {})


def _model(model: Model) -> Iterator[Reading]:
    workers, labels = model.workers, model_labels(model.name)
    yield Reading(catalogue.MODEL_INFO, 1, {**labels, "backend": model.settings.model_backend})
    states = workers.states()
    for state in states:
        yield from _worker(state, {**labels, "worker": str(state.worker_id)})
    at_workers = sum(min(stats.num_waiting, state.num_requests) for state in states if (stats := state.stats))
    yield Reading(catalogue.NUM_WAITING, workers.num_waiting + at_workers, labels)
    affinity = workers.affinity_stats()
    for result, number in (
        ("hit", affinity.num_hits),
        ("miss", affinity.num_misses),
        ("diverted", affinity.num_diverted),
    ):
        yield Reading(catalogue.AFFINITY, number, {"result": result, **labels})


def _worker(state: WorkerState, labels: dict[str, str]) -> Iterator[Reading]:
    now = "ready" if state.is_ready else "starting"
    for name in _WORKER_STATES:
        yield Reading(catalogue.WORKER_STATE, int(name == now), {**labels, "state": name})
    yield Reading(catalogue.WORKER_RESTARTS, state.restarts, labels)
    for metric, name in _ENGINE_TOTALS:
        yield Reading(metric, state.totals[name], labels)
    num_waiting = min(state.stats.num_waiting, state.num_requests) if state.stats else 0
    yield Reading(catalogue.NUM_RUNNING, state.num_requests - num_waiting, labels)
    if state.stats is not None:
        yield Reading(catalogue.KV_CACHE_USAGE, _kv_usage(state.stats), labels)
        yield Reading(catalogue.KV_CACHE_TOKENS, state.stats.kv_cache_tokens, labels)
        yield Reading(catalogue.DEVICE_MEMORY, state.stats.device_memory_bytes, labels)


def _kv_usage(stats: EngineStats) -> float:
    return stats.kv_cache_used_tokens / stats.kv_cache_tokens if stats.kv_cache_tokens else 0.0
