"""What is measured of one question, from its opening to its one terminal event.  It runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from tru_vlm.errors import ErrorInfo
from tru_vlm.telemetry import catalogue
from tru_vlm.telemetry.access_log import log_question
from tru_vlm.telemetry.catalogue import Metric, model_labels
from tru_vlm.telemetry.exchange import Exchange, Outcome, current_exchange, new_id, outcome_of
from tru_vlm.telemetry.metrics import Metrics
from tru_vlm.types import Answer, Origin, Stage, VideoInfo

_STAGES: Mapping[str, Metric] = {
    "fetch": catalogue.FETCH,
    "probe": catalogue.PROBE,
    "video_decode": catalogue.VIDEO_DECODE,
}
_TOKENS = ("prompt", "video", "cached", "completion")
_IN_TIMINGS = ("queue", "preprocess", "prefill", "time_to_first_token", "total")


def begin_counters(metrics: Metrics, labels: Mapping[str, str]) -> None:
    """Export the counters of a model's questions from the start, as far as their labels are known."""
    for reason in ("stop", "length"):
        metrics.begin(catalogue.REQUEST_SUCCESS, finished_reason=reason, **labels)
    for stage in get_args(Stage):
        metrics.begin(catalogue.REQUEST_ABORTS, stage=stage, **labels)


class QuestionRecord:
    """Counts one question, and tells the log of it and the trace.

    Args:
        metrics: where.
        model_name: the model or alias that it asks for.

    Attributes:
        origin: of the exchange that opened it.
        span: of it, to have a child for each stage.
        id: unique on this server; the same, unless the client chose that one or it opened another question before.
    """

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._metrics = metrics
        self._labels = model_labels(model_name, variant="")
        self._exchange = current_exchange() or Exchange(new_id())
        self.span = self._exchange.span.child("question")
        request_id = new_id() if self._exchange.is_connection else self._exchange.request_id
        self.origin = Origin(request_id, self.span.carrier)
        is_taken = self._exchange.is_id_taken and not self._exchange.is_connection
        self.id = new_id() if is_taken else self.origin.request_id
        self._exchange.is_id_taken = True

    def opened(self) -> None:
        """From now on it is counted here, once, and not as its exchange's."""
        self._exchange.has_question = True

    def chosen(self, variant: str) -> None:
        """It is this model that answers."""
        self._labels = model_labels(self._labels["model_name"], variant)

    def sampled(self, videos: list[VideoInfo]) -> None:
        """Its frames are there."""
        if videos:
            self._observe(catalogue.NUM_FRAMES, sum(video.num_frames for video in videos))
            self._observe(catalogue.VISUAL_TOKENS, sum(video.video_tokens for video in videos))

    def first_token(self, seconds: float) -> None:
        """Its answer begins, so long after its receipt."""
        self._observe(catalogue.TTFT, seconds)

    def answered(self, answer: Answer, stages: Mapping[str, float]) -> None:
        """It was answered to the end.

        Args:
            answer: the answer.
            stages: seconds by stage of those before the queue that it went through.
        """
        timings, usage = answer.timings, answer.usage
        self._count(catalogue.REQUEST_SUCCESS, finished_reason=answer.finish_reason)
        for name, metric in _STAGES.items():
            if name in stages:
                self._observe(metric, stages[name])
        self._observe(catalogue.QUEUE, timings.queue)
        self._observe(catalogue.PREPROCESS, timings.preprocess)
        self._observe(catalogue.PREFILL, timings.prefill)
        self._observe(catalogue.DECODE, timings.total - timings.time_to_first_token)
        self._observe(catalogue.E2E, timings.total)
        self._observe(catalogue.PROMPT_TOKENS_HISTOGRAM, usage.prompt_tokens)
        self._observe(catalogue.GENERATION_TOKENS_HISTOGRAM, usage.completion_tokens)
        self._end(
            "success",
            finish_reason=answer.finish_reason,
            **{f"{name}_tokens": getattr(usage, f"{name}_tokens") for name in _TOKENS},
            **{f"{name}_seconds": seconds for name, seconds in stages.items() if name not in _IN_TIMINGS},
            **{f"{name}_seconds": getattr(timings, name) for name in _IN_TIMINGS},
        )

    def aborted(self, stage: Stage) -> None:
        """It was stopped, in a stage."""
        self._count(catalogue.REQUEST_ABORTS, stage=stage)
        self._end("abort", stage=stage)

    def failed(self, error: ErrorInfo) -> None:
        """It ended with an error."""
        outcome = outcome_of(error.status)
        if outcome == "rejected":
            self._metrics.count(catalogue.REJECTIONS, route=self._exchange.route, cause=error.code)
        else:
            self._count(catalogue.REQUEST_FAILURES, code=error.code)
        self._exchange.error = error
        self._end(outcome, error=error.code)

    def _end(self, outcome: Outcome, **facts: Any) -> None:
        self._count(catalogue.REQUESTS, route=self._exchange.route, outcome=outcome)
        self._exchange.outcome = outcome
        named = {"question_id": self.id} if self.id != self.origin.request_id else {}
        model, variant = self._labels["model_name"], self._labels["variant"]
        self.span.end(
            error=facts.get("error"),
            attributes={
                "tru_vlm.request_id": self.origin.request_id,
                "tru_vlm.outcome": outcome,
                "tru_vlm.stage": facts.get("stage"),
                "tru_vlm.finish_reason": facts.get("finish_reason"),
                "gen_ai.request.model": model,
                "gen_ai.response.model": variant or None,
                "gen_ai.usage.input_tokens": facts.get("prompt_tokens"),
                "gen_ai.usage.output_tokens": facts.get("completion_tokens"),
            },
        )
        log_question(self._exchange, outcome, {**named, "model": model, "variant": variant or None, **facts})

    def _count(self, metric: Metric, **labels: str) -> None:
        self._metrics.count(metric, **labels, **self._labels)

    def _observe(self, metric: Metric, value: float) -> None:
        self._metrics.observe(metric, value, **self._labels)
