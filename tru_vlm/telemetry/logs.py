"""How a line of the log looks, and where it goes: one form for this program and its libraries, in every process.

It knows nothing of what is logged.  A line is written to stderr, as text for people or as one JSON object
(docs/adr/0025).  Lines about a request carry its id, which the task or thread that works on it knows.
"""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

from tru_vlm.telemetry.exchange import current_origin

LogFormat = Literal["text", "json"]

_PROCESSES = {"MainProcess": "main", "LitServer-0": "http", "inference-worker": "worker"}
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
"""A line stays a line, whatever a client has put into it."""

_LEAST_LEVELS = {
    "httpx": logging.WARNING,  # its lines hold whole URLs, queries included
    "httpcore": logging.INFO,  # likewise its debug lines
}


def configure_logs(log_format: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Make this process log in one form; what libraries had set up for themselves is taken away.

    Args:
        log_format: text or json.
        level: least level that is logged.
        stream: where lines go; stderr by default.
    """
    logging.root.handlers[:] = [build_handler(log_format, stream or sys.stderr)]
    logging.root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name, least in _LEAST_LEVELS.items():
        logging.getLogger(name).setLevel(max(least, logging.root.level))
    adopt_libraries()


def adopt_libraries() -> None:
    """Let the lines of all libraries that were imported by now go where ours go."""
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


def build_handler(log_format: LogFormat, stream: TextIO) -> logging.Handler:
    """What writes lines in a format to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    return handler


def with_fields(**fields: Any) -> dict[str, dict[str, Any]]:
    """The ``extra`` of a line that carries fields beside its words; those that are None are left out."""
    return {"fields": {name: value for name, value in fields.items() if value is not None}}


class _Json(JsonFormatter):
    """A line as one JSON object."""

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Fill the object."""
        log_data |= {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": _process(record),
            "pid": record.process,
            "message": record.getMessage(),
            **dict(_fields(record)),
        }
        if "exc_info" in message_dict:
            log_data["exception"] = message_dict["exc_info"]


class _Text(logging.Formatter):
    """A line for people: its fields follow its words as ``name=value``."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line, without its traceback."""
        head = f"{_timestamp(record)} {record.levelname} {_process(record)}[{record.process}] {record.name}:"
        fields = "".join(f" {name}={value}" for name, value in _fields(record))
        return head + f" {record.message}{fields}".translate(_CONTROLS)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        """The traceback, set in, so that no part of it looks like a line."""
        return textwrap.indent(super().formatException(ei), "    ")


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _process(record: logging.LogRecord) -> str:
    return _PROCESSES.get(record.processName or "", record.processName or "")


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    origin = current_origin()
    if origin is not None:
        yield "request_id", origin.request_id
        if traceparent := origin.trace.get("traceparent"):
            _, trace_id, span_id, _ = traceparent.split("-")
            yield "trace_id", trace_id
            yield "span_id", span_id
    yield from getattr(record, "fields", {}).items()
