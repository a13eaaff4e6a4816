"""Resumable uploads under ``/v1/uploads``: the tus protocol, 1.0.0 (https://tus.io/protocols/resumable-upload).

Core, and its extensions creation, expiration, checksum and termination.  An upload that is complete is a kept video:
the last answer, and every HEAD after it, tells its id in the header ``Video-Id``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tru_vlm.api.error_response import error_response, new_request_id
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.kept_videos.uploads_openapi import (
    CREATE_PARAMETERS,
    CREATE_RESPONSES,
    DELETE_RESPONSES,
    HEAD_RESPONSES,
    PATCH_BODY,
    PATCH_RESPONSES,
    UPLOAD_RESPONSES,
    UploadAnswer,
)
from tru_vlm.api.request_body import content_type_of, owner_of
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import InvalidRequestError, PreconditionError, TruError, UnsupportedMediaError
from tru_vlm.intake.spool import too_large
from tru_vlm.library.uploads import Checksum, Upload

VERSION = "1.0.0"
_PIECES = "application/offset+octet-stream"
_ALGORITHMS = ("sha1", "sha256", "md5")
_MAX_METADATA_CHARACTERS = 4096
_MAX_DIGITS = 18

UploadId = Annotated[str, Path(max_length=128, description="From the `Location` of the answer that created it.")]


def build_router(service: InferenceService) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter(tags=["uploads"])
    uploads = _Uploads(service)

    @router.options("/v1/uploads", status_code=204, include_in_schema=False)
    @router.options("/v1/uploads/{upload_id}", status_code=204, include_in_schema=False)
    async def abilities() -> Response:
        """What is spoken here."""
        headers = {
            "Tus-Version": VERSION,
            "Tus-Extension": "creation,expiration,checksum,termination",
            "Tus-Max-Size": str(service.settings.max_upload_bytes),
            "Tus-Checksum-Algorithm": ",".join(_ALGORITHMS),
        }
        return Response(status_code=204, headers={"Tus-Resumable": VERSION, **headers})

    @router.post("/v1/uploads", status_code=201, openapi_extra=CREATE_PARAMETERS, responses=CREATE_RESPONSES)
    async def create(request: Request) -> Response:
        """Begin a resumable upload (tus 1.0.0); its space is set aside."""
        return await _answered(request, partial(uploads.create, request))

    @router.head("/v1/uploads/{upload_id}", responses=HEAD_RESPONSES)
    async def head(upload_id: UploadId, request: Request) -> Response:
        """How many bytes of an upload are there. A request that still seems to send some is interrupted."""
        return await _answered(request, partial(uploads.head, upload_id, request))

    @router.patch("/v1/uploads/{upload_id}", status_code=204, openapi_extra=PATCH_BODY, responses=PATCH_RESPONSES)
    async def patch(upload_id: UploadId, request: Request) -> Response:
        """Send bytes, from `Upload-Offset` on. With the last one the upload becomes a kept video."""
        return await _answered(request, partial(uploads.patch, upload_id, request))

    @router.delete("/v1/uploads/{upload_id}", status_code=204, responses=DELETE_RESPONSES)
    async def delete(upload_id: UploadId, request: Request) -> Response:
        """End an upload and forget its bytes. A video that it has become is kept."""
        return await _answered(request, partial(uploads.delete, upload_id, request))

    @router.get("/v1/uploads/{upload_id}", responses=UPLOAD_RESPONSES)
    async def get(upload_id: UploadId, request: Request) -> UploadAnswer:
        """Where an upload is, as JSON; nobody is interrupted."""
        upload = await uploads.store.get(upload_id, owner_of(request))
        return UploadAnswer(
            id=upload.id,
            filename=upload.filename,
            offset=upload.offset,
            size_bytes=upload.size_bytes,
            expires_at=int(uploads.store.expires_at(upload)),
            video_id=upload.sha256,
        )

    @router.post("/v1/uploads/{upload_id}", include_in_schema=False)
    async def other_method(upload_id: UploadId, request: Request) -> Response:
        """For clients behind proxies that let only GET and POST pass."""
        methods = {"HEAD": uploads.head, "PATCH": uploads.patch, "DELETE": uploads.delete}
        method = methods.get(request.headers.get("x-http-method-override", ""))
        if method is None:
            text = f"An upload takes POST only with X-HTTP-Method-Override: {', '.join(methods)}."
            raise InvalidRequestError(text, param="X-HTTP-Method-Override")
        return await _answered(request, partial(method, upload_id, request))

    return router


class _Uploads:
    """What the methods do."""

    def __init__(self, service: InferenceService) -> None:
        self.store = service.library.uploads
        self._library = service.library
        self._max_bytes = service.settings.max_upload_bytes

    async def create(self, request: Request) -> Response:
        if "upload-length" not in request.headers and "upload-defer-length" in request.headers:
            text = "Upload-Defer-Length is not supported; say the length with Upload-Length."
            raise InvalidRequestError(text, param="Upload-Defer-Length")
        size_bytes = _number(request, "Upload-Length")
        if size_bytes > self._max_bytes:
            raise too_large(self._max_bytes, param="Upload-Length")
        if size_bytes == 0:
            raise InvalidRequestError("Upload-Length is 0; an empty file is no video.", param="Upload-Length")
        metadata = request.headers.get("upload-metadata")
        upload = await self.store.create(
            size_bytes=size_bytes,
            filename=_metadata(metadata or "").get("filename"),
            metadata=metadata,
            owner=owner_of(request),
        )
        return Response(status_code=201, headers={**self._headers(upload), "Location": f"/v1/uploads/{upload.id}"})

    async def head(self, upload_id: str, request: Request) -> Response:
        upload = await self._library.finish(await self.store.settle(upload_id, owner_of(request)))
        headers = {**self._headers(upload), "Upload-Length": str(upload.size_bytes), "Cache-Control": "no-store"}
        if upload.metadata:
            headers["Upload-Metadata"] = upload.metadata
        return Response(headers=headers)

    async def patch(self, upload_id: str, request: Request) -> Response:
        content_type = content_type_of(request).partition(";")[0].strip()
        if content_type != _PIECES:
            text = f"The body is {content_type!r}; an upload's pieces are {_PIECES}."
            raise UnsupportedMediaError(text, param="Content-Type", code="unsupported_content_type")
        upload = await self.store.append(
            upload_id,
            owner_of(request),
            offset=_number(request, "Upload-Offset"),
            chunks=request.stream(),
            checksum=_checksum(request),
        )
        return Response(status_code=204, headers=self._headers(await self._library.finish(upload)))

    async def delete(self, upload_id: str, request: Request) -> Response:
        await self.store.remove(upload_id, owner_of(request))
        return Response(status_code=204)

    def _headers(self, upload: Upload) -> dict[str, str]:
        headers = {
            "Upload-Offset": str(upload.offset),
            "Upload-Expires": formatdate(self.store.expires_at(upload), usegmt=True),
        }
        return {**headers, "Video-Id": upload.sha256} if upload.sha256 is not None else headers


async def _answered(request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
    """What ``work`` answers, or its error, with the headers that the protocol asks for."""
    more: Mapping[str, str] = {"Tus-Resumable": VERSION}
    try:
        _check_version(request)
        response = await work()
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except PreconditionError as error:
        more = {**more, "Tus-Version": VERSION}
        response = error_response(error.info(), new_request_id())
    except TruError as error:
        response = error_response(error.info(), new_request_id())
    response.headers.update(more)
    return response


def _check_version(request: Request) -> None:
    version = request.headers.get("tus-resumable")
    if version != VERSION:
        came = f"is {version[:40]!r}" if version is not None else "is missing"
        raise PreconditionError(f"Tus-Resumable {came}; this server speaks {VERSION}.", param="Tus-Resumable")


def _number(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InvalidRequestError(f"{name} is {text[:40]!r}; it must be a number of bytes.", param=name)
    return int(text)


def _metadata(text: str) -> dict[str, str]:
    """Keys and their base64 values."""
    name = "Upload-Metadata"
    if len(text) > _MAX_METADATA_CHARACTERS:
        raise InvalidRequestError(f"{name} is longer than {_MAX_METADATA_CHARACTERS} characters.", param=name)
    found = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        key, _, value = pair.partition(" ")
        try:
            found[key] = base64.b64decode(value, validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            raise InvalidRequestError(f"{name}: the value of {key[:40]!r} is not base64.", param=name) from None
    return found


def _checksum(request: Request) -> Checksum | None:
    name = "Upload-Checksum"
    text = request.headers.get(name)
    if text is None:
        return None
    algorithm, _, value = text.partition(" ")
    if algorithm not in _ALGORITHMS:
        accepted = ", ".join(_ALGORITHMS)
        raise InvalidRequestError(f"{name}: {algorithm[:40]!r} is not one of {accepted}.", param=name)
    try:
        return Checksum(algorithm, base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        raise InvalidRequestError(f"{name}: the digest is not base64.", param=name) from None
