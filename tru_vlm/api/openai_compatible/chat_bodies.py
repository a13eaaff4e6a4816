"""The body of ``POST /v1/chat/completions`` as the OpenAPI schema shows it: OpenAI's fields, and how to sample.

What a field means inside this server is ``chat_request.py``'s business, the sampling's spellings ``chat_media.py``'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from tru_vlm.api.bodies import (
    MAX_FRAMES,
    MAX_PIXELS,
    Body,
    GenerationParamsBody,
    SamplingBody,
    VideoId,
    VideoParamsBody,
)
from tru_vlm.api.openai_compatible.neutral import describe_neutral

Nothing = Annotated[None, Field(description="Null, as in an answer that is sent back.")]
Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
NumFrames = Annotated[int, Field(ge=-1, le=MAX_FRAMES)]
Url = Annotated[
    str,
    Field(min_length=1, description="An http(s) URL, a base64 data URI, or `video_id:` and the id of a kept video."),
]


class VideoUrlBody(VideoParamsBody):
    """Where a video is (`url` or `video_id`), and how it alone is sampled (SGLang's spelling, with more fields)."""

    url: Url | None = None
    video_id: VideoId | None = None


class ImageUrlBody(Body):
    """Where an image is: give `url` or `video_id`."""

    url: Url | None = None
    video_id: VideoId | None = None
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Changes nothing; give `max_pixels`.")
    min_pixels: Pixels | None = Field(None, description="Least height x width.")
    max_pixels: Pixels | None = Field(None, description="Most height x width.")
    fit: bool = Field(False, description="Make it smaller where the conversation would not fit into the context.")


class ChatTextPart(Body):
    """Words."""

    type: Literal["text"]
    text: str


class ChatVideoPart(Body):
    """A video; an image is accepted as well."""

    type: Literal["video_url"]
    video_url: VideoUrlBody
    uuid: str | None = Field(None, description="Changes nothing: what is kept is found by its content.")


class ChatImagePart(Body):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrlBody
    uuid: str | None = Field(None, description="Changes nothing: what is kept is found by its content.")


PARTS = (ChatTextPart, ChatVideoPart, ChatImagePart)
_PART_REFS = [{"$ref": f"#/components/schemas/{part.__name__}"} for part in PARTS]


class ChatMessage(Body):
    """One turn.  Videos and images stand in the user's messages, system messages at the beginning."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Any,
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": _PART_REFS}}]}),
        Field(description="Words, or parts: words, videos and images in the order in which the model sees them."),
    ]
    name: str | None = Field(None, description="Changes nothing.")
    refusal: Nothing = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class StreamOptionsBody(Body):
    """What a stream has beside the text."""

    include_usage: bool | None = Field(None, description="A last chunk with the token counts.")
    include_obfuscation: bool | None = Field(None, description="Changes nothing: nothing is added to chunks.")


class SizeBody(Body):
    """Transformers' `size`, whose "edges" are areas in pixels."""

    shortest_edge: Pixels | None = Field(None, description="Least height x width of an image; not for videos.")
    longest_edge: Pixels | None = Field(
        None, description="Most height x width of an image, or most frames x height x width of a video."
    )


class MmProcessorKwargs(VideoParamsBody):
    """How all videos and images of the request are sampled (vLLM's spelling); a part's own fields go first."""

    num_frames: NumFrames | None = Field(
        None, description="As in `media_io_kwargs`; without `fps`, so many frames evenly spread."
    )
    size: SizeBody | None = None
    do_sample_frames: Literal[True] | None = Field(None, description="Frames are always sampled here.")


class VideoIoKwargs(Body):
    """vLLM's options for loading videos."""

    fps: Annotated[float, Field(ge=-1, le=240)] | None = Field(None, description="Frames per second; -1: not given.")
    num_frames: NumFrames | None = Field(
        None,
        description="Most frames; -1 sets no limit beside the server's own. Without `fps`, so many evenly spread "
        "frames, or all where the video has fewer.",
    )


class MediaIoKwargs(Body):
    """vLLM's options for loading media."""

    video: VideoIoKwargs | None = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
    # vLLM's and SGLang's
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({}, {"enable_thinking": False}),
    "continue_final_message": (False,),
    "documents": (),
    "echo": (False,),
    "include_reasoning": (False, True),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1.0,),
    "min_tokens": (0,),
    "no_stop_trim": (False,),
    "priority": (0,),
    "prompt_logprobs": (),
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "separate_reasoning": (False, True),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (False, True),
    "stop_token_ids": ([],),
    "stream_reasoning": (False, True),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
"""Fields that this server does not implement, and the values, beside null, that ask for nothing."""


class ConversationBody(SamplingBody):
    """What the bodies of OpenAI's routes have in common."""

    model: str | None = Field(
        None,
        description="A model or alias that `/v1/models` lists; left out, the server's default.",
        examples=["demo"],
    )
    stream: bool = Field(False, description="Answer as server-sent events.")
    mm_processor_kwargs: MmProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None
    user: str | None = Field(
        None, description="Where `model` is an alias: requests of one user are answered by one of its models."
    )
    metadata: dict[str, Any] | None = Field(None, description="Changes nothing.")
    safety_identifier: str | None = Field(None, description="Changes nothing.")
    prompt_cache_key: str | None = Field(
        None, description="As `user`, and goes before it; beside that, what is kept is found by its content."
    )
    prompt_cache_retention: str | None = Field(None, description="Changes nothing.")
    parallel_tool_calls: bool | None = Field(None, description="Changes nothing: there are no tools.")


class ChatRequestBody(ConversationBody, GenerationParamsBody):
    """OpenAI's chat completion.  A field that is null counts as left out."""

    model_config = ConfigDict(json_schema_extra=describe_neutral(NEUTRAL))

    messages: Annotated[list[ChatMessage], Field(min_length=1, description="The conversation.")]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="The same as `max_tokens`.")
    stream_options: StreamOptionsBody | None = None
