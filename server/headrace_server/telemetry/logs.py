"""One line an event: JSON for machines, or text for people, to standard error.

    {"ts":"2026-01-31T12:00:00.123Z","level":"info","event":"model ready","logger":"headrace_server.server",…}

`event` is the message; whatever is given in `extra=` becomes a field of its own.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

__all__ = ["JsonFormatter", "TextFormatter", "configure_logging"]

_LOGGERS = ("headrace", "headrace_server")
# What logging itself puts on a record; all else came by `extra=`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(level: str, style: Literal["json", "text"], stream: TextIO | None = None) -> None:
    """Sends the server's own loggers, from `level` on, to `stream` (None: standard error) and nowhere else.

    Foreign loggers are left alone but for warnings, which go the same way, unless the program has set up its own.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what JSON does not know is written as text."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        for name, value in _extra(record).items():
            fields.setdefault(name, value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False, separators=(",", ":"))


class TextFormatter(logging.Formatter):
    """`12:00:00.123 INFO    model ready  model=spam`: for a terminal. Line breaks in values are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f"  {name}={_shown(value)}" for name, value in _extra(record).items())
        line = f"{moment} {record.levelname:<7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _timestamp(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _shown(value: object) -> str:
    text = str(value)
    return (
        json.dumps(text, ensure_ascii=False)
        if not text or any(each.isspace() or each in '"=' for each in text)
        else text
    )
