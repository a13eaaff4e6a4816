"""Each call as data: where it goes, what it sends, how its answer is read.  Both clients run these."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

import httpx

import tru_vlm
from tru_vlm.client.answers import Health, Model, read_answer, read_health, read_kept_video, read_models, read_plan
from tru_vlm.client.errors import ProtocolError, TransportError, api_error
from tru_vlm.client.options import as_form, as_json, given
from tru_vlm.client.video import CountedFile, KeptVideo, LocalVideo, UploadProgress, VideoSource, understand
from tru_vlm.plans import PlanAnswer
from tru_vlm.types import Answer

T = TypeVar("T")

_FIRST_ERROR_STATUS = 400
_CONNECT_SECONDS = 10.0
# uvicorn closes an idle connection after 5 s: one that is about to be closed is not used again.
_KEEP_IDLE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and what becomes of its answer."""

    method: str
    path: str
    read: Callable[[Any], T]
    json: Mapping[str, Any] | None = None
    form: Mapping[str, str] | None = None
    file: LocalVideo | None = None

    def open(self, on_upload: UploadProgress | None) -> CountedFile | None:
        """The file to send, from its beginning; None where there is none."""
        return self.file.open(on_upload) if self.file else None

    def build(self, http: httpx.Client | httpx.AsyncClient, file: CountedFile | None) -> httpx.Request:
        """The request; a file is read while it is sent."""
        if self.file is None:
            return http.build_request(self.method, self.path, json=self.json)
        files = {"video": (self.file.name, cast("Any", file))}
        return http.build_request(self.method, self.path, data=self.form, files=files)

    def parse(self, response: httpx.Response) -> T:
        """What a whole answer says.

        Raises:
            ProtocolError: if it cannot be read.
        """
        try:
            body = response.json() if response.content else None
        except ValueError as error:
            raise ProtocolError(f"The answer of {self.path} is not JSON; is this the server?") from error
        return self.read(body)


def ask(video: VideoSource, prompt: str, options: Mapping[str, Any], *, stream: bool = False) -> Call[Answer]:
    """A question."""
    source, chosen = understand(video), given(options)
    if isinstance(source, LocalVideo):
        form = {"prompt": prompt, **as_form(chosen), **({"stream": "true"} if stream else {})}
        return Call("POST", "/v1/inference/upload", read_answer, form=form, file=source)
    body = {**source.fields(), "prompt": prompt, **as_json(chosen), "stream": stream}
    return Call("POST", "/v1/inference/url", read_answer, json=body)


def plan(video: VideoSource, prompt: str, options: Mapping[str, Any]) -> Call[PlanAnswer]:
    """What a question would take."""
    source, chosen = understand(video), given(options)
    question = {"prompt": prompt} if prompt else {}
    if isinstance(source, LocalVideo):
        return Call("POST", "/v1/plan", read_plan, form={**question, **as_form(chosen)}, file=source)
    return Call("POST", "/v1/plan", read_plan, json={**source.fields(), **question, **as_json(chosen)})


def upload(video: VideoSource) -> Call[KeptVideo]:
    """Keep a video.

    Raises:
        ValueError: for one that is kept already.
    """
    source = understand(video)
    if isinstance(source, LocalVideo):
        return Call("POST", "/v1/videos", read_kept_video, form={}, file=source)
    fields = source.fields()
    if "video_url" not in fields:
        raise ValueError("the server keeps this video already")
    return Call("POST", "/v1/videos", read_kept_video, json=fields)


def delete(video_id: str) -> Call[None]:
    """Remove a kept video."""
    return Call("DELETE", f"/v1/videos/{quote(video_id, safe='')}", lambda _: None)


def models() -> Call[list[Model]]:
    """Which models there are."""
    return Call("GET", "/v1/models", read_models)


def health() -> Call[Health]:
    """How the server is."""
    return Call("GET", "/v1/health/detailed", read_health)


def http_options(base_url: str, api_key: str | None, silence_seconds: float) -> dict[str, Any]:
    """The arguments for httpx's clients."""
    headers = {"User-Agent": f"tru-vlm-client/{tru_vlm.__version__}"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "base_url": base_url,
        "headers": headers,
        # The pool never makes a request wait for longer than the answers of those before it.
        "timeout": httpx.Timeout(silence_seconds, connect=_CONNECT_SECONDS, pool=None),
        "limits": httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_IDLE_SECONDS),
    }


def is_error(response: httpx.Response) -> bool:
    """Whether the status is one of an error (redirects included: this server sends none)."""
    return response.status_code >= _FIRST_ERROR_STATUS or response.has_redirect_location


def settled(outcome: httpx.Response | httpx.TransportError) -> httpx.Response:
    """The response, if it is one of success; the body of an error has been read.

    Raises:
        ClientError: any other outcome.
    """
    if isinstance(outcome, httpx.TransportError):
        raise transport_error(outcome) from outcome
    if not is_error(outcome):
        return outcome
    try:
        body = json.loads(outcome.content)
    except ValueError:
        body = None
    raise api_error(body, status=outcome.status_code, headers=outcome.headers)


def transport_error(error: httpx.TransportError) -> TransportError:
    """The exception of httpx as one of ours."""
    where = error.request.url.copy_with(path="/", query=None)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return TransportError(f"Cannot reach {where} ({error or type(error).__name__}).")
    if isinstance(error, httpx.TimeoutException):
        return TransportError(f"The server {where} was silent for too long.")
    return TransportError(f"The connection to {where} broke ({error or type(error).__name__}).")
