"""The reader turns a multipart body into fields and spooled files while it arrives; it knows no HTTP framework.

The push parser of python-multipart does the syntax (RFC 7578).  Files never gather in memory: each chunk's events are
carried out before the next chunk is asked for, so a slow disk slows the sender down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tru_vlm.errors import InvalidRequestError, PayloadTooLargeError
from tru_vlm.intake.spool import Spool, SpooledFile, SpoolWriter

MAX_BOUNDARY_BYTES = 70  # RFC 2046, section 5.1.1
MAX_PART_HEADERS = 8
MAX_HEADER_BYTES = 4096
PART_OVERHEAD_BYTES = MAX_PART_HEADERS * MAX_HEADER_BYTES + 512
PLAIN_ENCODINGS = frozenset({b"", b"7bit", b"8bit", b"binary"})


@dataclass(frozen=True, slots=True)
class MultipartForm:
    """A complete form: text fields and files by name.  The files belong to the caller, who removes them."""

    fields: dict[str, str]
    files: dict[str, SpooledFile]


async def receive_multipart(
    stream: AsyncIterator[bytes],
    content_type: str,
    *,
    spool: Spool,
    file_fields: frozenset[str],
    max_file_bytes: int,
    max_field_bytes: int,
    max_fields: int,
) -> MultipartForm:
    """Read a multipart/form-data body to its end.

    A file field without content and without a file name (a browser's empty file input) counts as not given.

    Args:
        stream: the body's chunks; what it raises (client gone) passes through.
        content_type: the request's Content-Type header.
        spool: where files go.
        file_fields: names under which files are accepted.
        max_file_bytes: most bytes of one file.
        max_field_bytes: most bytes of one text field.
        max_fields: most parts of the form, files included.

    Raises:
        InvalidRequestError: not a form, malformed, cut off, a repeated field, or a file under another name.
        PayloadTooLargeError: a file or field over its limit; raised while it arrives.
        UnavailableError: no space for the file.
    """
    receiver = _Receiver(
        boundary=_boundary(content_type),
        spool=spool,
        file_fields=file_fields,
        max_file_bytes=max_file_bytes,
        max_field_bytes=max_field_bytes,
        max_fields=max_fields,
    )
    try:
        async for chunk in stream:
            await receiver.feed(chunk)
        return receiver.finish()
    except BaseException:
        await receiver.discard()
        raise


def _boundary(content_type: str) -> bytes:
    """The boundary of a multipart/form-data header.

    Raises:
        InvalidRequestError: another type, or no boundary.
    """
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise InvalidRequestError("The body must be multipart/form-data.", param=None, code="unsupported_content_type")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        raise _malformed("its Content-Type has no usable boundary")
    return boundary


def _malformed(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"The multipart body is malformed: {reason}.", code="malformed_body")


class _Kind(Enum):
    BEGIN = 0
    HEADER_NAME = 1
    HEADER_VALUE = 2
    HEADER_END = 3
    HEADERS_FINISHED = 4
    DATA = 5
    END = 6


@dataclass(slots=True)
class _Part:
    """The part that is being read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_name: bytes = b""
    header_value: bytes = b""
    name: str = ""
    has_filename: bool = False
    text: bytearray = field(default_factory=bytearray)
    writer: SpoolWriter | None = None


class _Receiver:
    """Carries the parser's events out, one chunk at a time."""

    def __init__(
        self,
        *,
        boundary: bytes,
        spool: Spool,
        file_fields: frozenset[str],
        max_file_bytes: int,
        max_field_bytes: int,
        max_fields: int,
    ) -> None:
        self._spool = spool
        self._file_fields = file_fields
        self._max_file_bytes = max_file_bytes
        self._max_field_bytes = max_field_bytes
        self._max_fields = max_fields
        self._max_body_bytes = len(file_fields) * max_file_bytes + max_fields * (max_field_bytes + PART_OVERHEAD_BYTES)
        self._num_parts = 0
        self._body_bytes = 0
        self._is_complete = False
        self._part = _Part()
        self._fields: dict[str, str] = {}
        self._files: dict[str, SpooledFile] = {}
        self._seen: set[str] = set()
        self._events: list[tuple[_Kind, bytes]] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": lambda: self._push(_Kind.BEGIN),
                "on_header_field": lambda data, start, end: self._push(_Kind.HEADER_NAME, data[start:end]),
                "on_header_value": lambda data, start, end: self._push(_Kind.HEADER_VALUE, data[start:end]),
                "on_header_end": lambda: self._push(_Kind.HEADER_END),
                "on_headers_finished": lambda: self._push(_Kind.HEADERS_FINISHED),
                "on_part_data": lambda data, start, end: self._push(_Kind.DATA, data[start:end]),
                "on_part_end": lambda: self._push(_Kind.END),
                "on_end": self._complete,
            },
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )

    async def feed(self, chunk: bytes) -> None:
        """Take one chunk of the body in."""
        self._body_bytes += len(chunk)
        if self._body_bytes > self._max_body_bytes:
            raise PayloadTooLargeError(f"The body is larger than {self._max_body_bytes} bytes.")
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed("it does not follow RFC 7578") from error
        events, self._events = self._events, []
        for kind, data in events:
            await self._carry_out(kind, data)

    def finish(self) -> MultipartForm:
        """The whole form.

        Raises:
            InvalidRequestError: the body ended before its closing boundary.
        """
        if not self._is_complete:
            raise _malformed("it ends before its closing boundary")
        return MultipartForm(fields=self._fields, files=self._files)

    async def discard(self) -> None:
        """Remove every file that came in."""
        if self._part.writer is not None:
            await self._part.writer.close()
        for file in self._files.values():
            await self._spool.remove(file)

    def _push(self, kind: _Kind, data: bytes = b"") -> None:
        self._events.append((kind, data))

    def _complete(self) -> None:
        self._is_complete = True

    async def _carry_out(self, kind: _Kind, data: bytes) -> None:
        part = self._part
        match kind:
            case _Kind.BEGIN:
                self._begin()
            case _Kind.HEADER_NAME:
                part.header_name += data
            case _Kind.HEADER_VALUE:
                part.header_value += data
            case _Kind.HEADER_END:
                part.headers[part.header_name.lower()] = part.header_value
                part.header_name = part.header_value = b""
            case _Kind.HEADERS_FINISHED:
                self._read_headers()
            case _Kind.DATA:
                await self._take(data)
            case _Kind.END:
                await self._end()

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > self._max_fields:
            raise InvalidRequestError(f"The form has more than {self._max_fields} fields.", code="too_many_fields")
        self._part = _Part()

    def _read_headers(self) -> None:
        part = self._part
        disposition, options = parse_options_header(part.headers.get(b"content-disposition", b"").decode("latin-1"))
        if disposition != b"form-data" or b"name" not in options:
            raise _malformed("a part has no Content-Disposition with a name")
        part.name = _decode(options[b"name"], what="a field's name")
        self._check_name(part.name, is_file=b"filename" in options)
        if part.headers.get(b"content-transfer-encoding", b"").strip().lower() not in PLAIN_ENCODINGS:
            raise _malformed("a part has a Content-Transfer-Encoding, which RFC 7578 no longer allows")
        part.has_filename = bool(options.get(b"filename"))
        if part.name in self._file_fields:
            filename = options.get(b"filename", b"").decode("utf-8", "replace")
            part.writer = self._spool.new_writer(filename=filename, max_bytes=self._max_file_bytes, param=part.name)

    def _check_name(self, name: str, *, is_file: bool) -> None:
        if name in self._seen:
            raise InvalidRequestError(f"The field {name!r} is given more than once.", param=name)
        self._seen.add(name)
        if is_file and name not in self._file_fields:
            accepted = ", ".join(sorted(self._file_fields))
            text = f"The field {name!r} takes no file; files are accepted as: {accepted}."
            raise InvalidRequestError(text, param=name)

    async def _take(self, data: bytes) -> None:
        part = self._part
        if part.writer is not None:
            await part.writer.write(data)
            return
        part.text += data
        if len(part.text) > self._max_field_bytes:
            raise PayloadTooLargeError(
                f"The field {part.name!r} is longer than {self._max_field_bytes} bytes.", param=part.name
            )

    async def _end(self) -> None:
        part = self._part
        if part.writer is None:
            self._fields[part.name] = _decode(bytes(part.text), what=f"the field {part.name!r}", param=part.name)
        elif part.writer.size_bytes or part.has_filename:
            self._files[part.name] = await part.writer.finish()
        self._part = _Part()


def _decode(data: bytes, *, what: str, param: str | None = None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"The multipart body is malformed: {what} is not UTF-8.", param=param) from error
