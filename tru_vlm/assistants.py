"""What assistants are offered over MCP (https://modelcontextprotocol.io): ask, plan, list.

Over stdio they are a client of a running server, which is not this process; over HTTP the server itself has them
(``api/mcp/endpoint.py``).  Needs the extra ``mcp``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, Any, Protocol

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

import tru_vlm
from tru_vlm.client import AskOptions, AsyncClient, ClientError, DeltaEvent, DoneEvent, StatusEvent

_LOOKS = ToolAnnotations(read_only_hint=True, open_world_hint=False)

Video = Annotated[
    str,
    Field(
        description="An http(s) URL of a video or image, the id of a kept video, or, where this runs on the user's "
        "machine (stdio), a path there."
    ),
]
Question = Annotated[str, Field(min_length=1, description="What to ask about it.")]
Fps = Annotated[float | None, Field(gt=0, description="Frames to sample per second; the server's default if left out.")]
MaxFrames = Annotated[int | None, Field(ge=2, description="Most frames to sample.")]
Start = Annotated[float | None, Field(ge=0, description="Where to begin, in seconds.")]
End = Annotated[float | None, Field(gt=0, description="Where to end, in seconds.")]
MaxTokens = Annotated[int | None, Field(ge=1, description="Most tokens of the answer.")]


class Backend(Protocol):
    """Does the tools' work."""

    def ask(
        self, context: Context, video: str, question: str, options: AskOptions
    ) -> AsyncGenerator[str | dict[str, Any], None]:
        """Ask: stages and pieces of the text, and last the answer.  Closing it stops the work.

        Raises:
            ToolError: what is wrong, in a sentence.
        """
        ...

    async def plan(self, context: Context, video: str, question: str, options: AskOptions) -> dict[str, Any]:
        """What a question would take.  Raises as :meth:`ask`."""
        ...

    async def models(self) -> list[dict[str, Any]]:
        """The models, with their context in tokens.  Raises as :meth:`ask`."""
        ...


class ClientBackend:
    """Over a client of a running server; whoever made it closes it."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def ask(
        self,
        context: Context,  # noqa: ARG002 - the client has a key of its own
        video: str,
        question: str,
        options: AskOptions,
    ) -> AsyncGenerator[str | dict[str, Any], None]:
        """See :class:`Backend`."""
        with _told():
            async with self._client.stream(video, question, **options) as events:
                async for event in events:
                    if isinstance(event, StatusEvent):
                        yield event.stage
                    elif isinstance(event, DeltaEvent):
                        yield event.text
                    elif isinstance(event, DoneEvent):
                        yield dataclasses.asdict(event.answer)

    async def plan(
        self,
        context: Context,  # noqa: ARG002 - the client has a key of its own
        video: str,
        question: str,
        options: AskOptions,
    ) -> dict[str, Any]:
        """See :class:`Backend`."""
        with _told():
            return dataclasses.asdict(await self._client.plan(video, question, **options))

    async def models(self) -> list[dict[str, Any]]:
        """See :class:`Backend`."""
        with _told():
            return [dataclasses.asdict(model) for model in await self._client.models()]


def build_mcp_server(backend: Backend) -> MCPServer:
    """The tools, whose work ``backend`` does."""
    server: MCPServer = MCPServer(
        "tru-vlm",
        version=tru_vlm.__version__,
        instructions="Ask questions about videos and images; times in answers are seconds from the start.",
        log_level="WARNING",
    )

    @server.tool(annotations=_LOOKS)
    async def ask_video(  # noqa: PLR0917 - the SDK calls it by name
        video: Video,
        question: Question,
        context: Context,
        fps: Fps = None,
        max_frames: MaxFrames = None,
        video_start: Start = None,
        video_end: End = None,
        max_tokens: MaxTokens = None,
    ) -> dict[str, Any]:
        """Ask a question about a video or image and get the answer, the times that were looked at, and the cost."""
        options = _options(fps, max_frames, video_start, video_end, max_tokens)
        num_pieces = 0
        async with contextlib.aclosing(backend.ask(context, video, question, options)) as pieces:
            async for piece in pieces:
                if isinstance(piece, dict):
                    return piece
                # Progress must grow; how long an answer will be, nobody knows.
                num_pieces += 1
                await context.report_progress(num_pieces, message=piece)
        raise AssertionError("a question ends with its answer or raises")

    @server.tool(annotations=_LOOKS)
    async def plan_video(  # noqa: PLR0917 - the SDK calls it by name
        video: Video,
        context: Context,
        question: Annotated[str, Field(description="The question, if its length is to count.")] = "",
        fps: Fps = None,
        max_frames: MaxFrames = None,
        video_start: Start = None,
        video_end: End = None,
        max_tokens: MaxTokens = None,
    ) -> dict[str, Any]:
        """Tell which frames a question would take, how many tokens, and whether they fit; no model runs."""
        options = _options(fps, max_frames, video_start, video_end, max_tokens)
        return await backend.plan(context, video, question, options)

    @server.tool(annotations=_LOOKS)
    async def list_models() -> list[dict[str, Any]]:
        """List the models that answer, with their context in tokens."""
        return await backend.models()

    return server


def _options(
    fps: float | None, max_frames: int | None, start: float | None, end: float | None, max_tokens: int | None
) -> AskOptions:
    # What an assistant asks about a long video shall be answered, not refused.
    named = {"fps": fps, "max_frames": max_frames, "video_start": start, "video_end": end, "max_tokens": max_tokens}
    return {"fit": True, **{name: value for name, value in named.items() if value is not None}}  # type: ignore[typeddict-item]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong as the tool's answer, in a sentence that the assistant can act on."""
    try:
        yield
    except ClientError as error:
        raise ToolError(str(error)) from error
    except OSError as error:
        raise ToolError(f"{error.filename}: {error.strerror}") from error
