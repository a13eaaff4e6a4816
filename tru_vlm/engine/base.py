"""The one interface behind which a model runs, and the types that cross it.

An engine owns the weights, the KV cache and the batch.  It knows nothing of HTTP, LitServe, files or URLs: frames
come in as arrays, text goes out in pieces.  It is driven from one thread by repeated :meth:`Engine.step`.

Contract, held by ``tests/engine/test_contract.py`` for every engine:

* after :meth:`Engine.submit` a request yields any number of :class:`TokenEvent` and then exactly one of
  :class:`FinishEvent` or :class:`FailEvent`;
* :meth:`Engine.abort` makes that last event a ``FinishEvent(finish_reason="abort")`` at the next step, and gives the
  memory back; aborting an unknown or finished id does nothing;
* a request that fails never touches another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

from tru_vlm.errors import ErrorInfo
from tru_vlm.processor.prompt import MediaLayout
from tru_vlm.types import FinishReason, GenerationParams, MediaKind, Message, Origin, Usage


@dataclass(frozen=True, slots=True)
class MediaInput:
    """Frames of one video or image.

    Attributes:
        kind: "video" or "image".
        frames: uint8, (T, 3, H, W), RGB; T is 1 for an image.  H and W are multiples of patch x merge size.
        timestamps_seconds: time of each frame; empty for an image.
        frames_indices: index of each frame in the source; empty for an image.
        source_fps: average frame rate of the source; None for an image.
        content_key: equal keys mean equal frames (caches may rely on it).
    """

    kind: MediaKind
    frames: NDArray[np.uint8]
    content_key: str
    timestamps_seconds: tuple[float, ...] = ()
    frames_indices: tuple[int, ...] = ()
    source_fps: float | None = None

    @property
    def layout(self) -> MediaLayout:
        """Its size, as prompts are built from it."""
        num_frames, _, height, width = self.frames.shape
        return MediaLayout(self.kind, num_frames, height, width, self.timestamps_seconds)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A conversation with its media, ready for a model."""

    id: str
    messages: tuple[Message, ...]
    media: tuple[MediaInput, ...]
    generation: GenerationParams
    cache_salt: str = ""
    """Keys and values are shared only among requests with the same one."""
    origin: Origin | None = None
    """For the log."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New text of one request.  ``text`` may be empty while a character or stop string is incomplete."""

    request_id: str
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """Seconds that one request spent inside the engine before its first token, by stage."""

    queue: float
    preprocess: float
    prefill: float


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The request is over and its memory is free."""

    request_id: str
    finish_reason: FinishReason
    usage: Usage
    timings: EngineTimings


@dataclass(frozen=True, slots=True)
class FailEvent:
    """The request failed; nobody else did."""

    request_id: str
    error: ErrorInfo


EngineEvent = TokenEvent | FinishEvent | FailEvent


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A look at the engine for health and metrics.

    Attributes:
        num_running: sequences in the batch.
        num_waiting: sequences submitted and not yet admitted.
        kv_cache_tokens, kv_cache_used_tokens: capacity and use.
        num_steps: model steps so far.
        num_prompt_tokens, num_generated_tokens: totals so far.
        device_memory_bytes: allocated on the device, or resident on a CPU.
        num_computed_prompt_tokens: prompt tokens that the model was run on, so far.
        num_draft_tokens, num_accepted_draft_tokens: tokens that were drafted for the model to check, and those among
            them that the answers went on with; so far.
        prefix_cache_queries, prefix_cache_hits: prompt tokens looked up in the prefix cache, and found; so far.
        prefix_cache_bytes: of the KV cache's content that can be found.  It gives way to running requests.
        prefix_cache_evictions: blocks that gave way so far.
        mm_cache_queries, mm_cache_hits: temporal patches looked up in the feature cache, and found; so far.
        mm_cache_bytes: of the features in it.
        mm_cache_evictions: temporal patches removed from it for space, so far.
    """

    num_running: int
    num_waiting: int
    kv_cache_tokens: int
    kv_cache_used_tokens: int
    num_steps: int
    num_prompt_tokens: int
    num_generated_tokens: int
    device_memory_bytes: int
    num_computed_prompt_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prefix_cache_bytes: int = 0
    prefix_cache_evictions: int = 0
    mm_cache_queries: int = 0
    mm_cache_hits: int = 0
    mm_cache_bytes: int = 0
    mm_cache_evictions: int = 0


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """What was loaded, chosen once at start; shown in health.

    Attributes:
        backend: "hf" or "vllm".
        model_path, model_type: the checkpoint's place and family.
        device, dtype: where it runs, and in which type it computes.
        attention, attention_reason: the kernel, and why it.
        decoding: how steps run that only continue answers, and why so.
        quantization: "none", what was asked for, or what the checkpoint itself is.
        num_parameters: of the whole model.
        full_weight_bytes: what the weights would take unquantized, in ``dtype``.
        weight_bytes: what they take; 0 where the engine does not tell.
        context_tokens: most tokens of prompt, frames and answer together.
        versions: of the libraries that matter.
    """

    backend: str
    model_path: str
    model_type: str
    device: str
    dtype: str
    attention: str
    attention_reason: str
    decoding: str
    quantization: str
    num_parameters: int
    full_weight_bytes: int
    weight_bytes: int
    context_tokens: int
    versions: dict[str, str]


class Engine(Protocol):
    """See the module's docstring for the contract."""

    @property
    def description(self) -> EngineDescription:
        """What was loaded."""
        ...

    def warm_up(self) -> None:
        """Before the first request: answer one about made-up frames, through every stage, and forget it.

        Caches, counters and statistics are as before.

        Raises:
            InternalError: if it cannot be answered.
        """
        ...

    def submit(self, request: EngineRequest) -> None:
        """Take a request in; it joins the batch at a later step.

        Raises:
            TruError: if it can never run (for example does not fit into the context); nothing was taken in.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Stop a request wherever it is."""
        ...

    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        ...

    def step(self) -> Sequence[EngineEvent]:
        """Advance every running request by one iteration and return what happened, in order."""
        ...

    def stats(self) -> EngineStats:
        """Counters and gauges; cheap."""
        ...

    def close(self) -> None:
        """Give back device memory and child processes."""
        ...
