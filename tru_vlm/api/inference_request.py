"""A checked request: a conversation, its videos and images, and how to answer it.  It knows no route's spelling.

Every route's body becomes one of these at the door, and is trusted afterwards.  Errors that only show later (a URL that
cannot be fetched, frames that do not fit) still name a field of the body: its names travel along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tru_vlm.errors import InvalidRequestError
from tru_vlm.intake.source import MediaSource
from tru_vlm.intake.spool import SpooledFile
from tru_vlm.types import GenerationParams, Message, VideoParams

_SAMPLING = "video_params."


@dataclass(frozen=True, slots=True)
class MediaRequest:
    """One video or image: where it is, and how to sample it.

    Attributes:
        source: the file that was uploaded, a kept video, or an address (http(s) URL or data URI).
        params: how its frames are sampled.
        param: the body's field that held it.
        sampling_param: the body's field that held ``params``.
        names: fields of ``params`` that stood elsewhere in the body, and where.
    """

    source: MediaSource
    params: VideoParams
    param: str
    sampling_param: str = "video_params"
    names: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, name: str) -> str:
        """The body's field that held a field of ``params``."""
        return self.names.get(name, f"{self.sampling_param}.{name}")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let errors about the sampling name the body's own field."""
        try:
            yield
        except InvalidRequestError as error:
            if error.param and error.param.startswith(_SAMPLING):
                error.param = self.name_of(error.param.removeprefix(_SAMPLING))
            raise


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What the body calls the fields that errors may name."""

    prompt: str = "prompt"
    max_tokens: str = "generation_params.max_tokens"
    response_format: str = "generation_params.response_format"
    logit_bias: str = "logit_bias"


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """See the module's docstring.

    Attributes:
        messages: the conversation; its media parts point into ``media``.
        media: its videos and images, in the order of their parts.
        generation: how to generate.
        max_tokens_is_default: whether the request left the answer's length open.
        stream: whether the answer is streamed.
        names: of the body's fields.
        model: the model or alias that is asked for; None takes the server's default.
        routing_key: requests with the same one are answered by the same of an alias's models; None goes by the content.
        is_background: whether nobody waits for the answer: then the others go first.
    """

    messages: tuple[Message, ...]
    media: tuple[MediaRequest, ...]
    generation: GenerationParams
    max_tokens_is_default: bool
    stream: bool
    names: FieldNames = FieldNames()
    model: str | None = None
    routing_key: str | None = None
    is_background: bool = False

    @property
    def files(self) -> tuple[SpooledFile, ...]:
        """The files that came with the request, which whoever takes it must remove."""
        return tuple(item.source for item in self.media if isinstance(item.source, SpooledFile))

    @property
    def fits(self) -> bool:
        """Whether any of the media may be made smaller to fit."""
        return any(item.params.fit for item in self.media)
