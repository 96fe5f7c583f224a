"""Logging of every process: one line an event on stderr, as text for people or JSON for collectors."""

import json
import logging
import sys
import time
from typing import Final, TextIO

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _timestamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _printable(line: str) -> str:
    """What came from outside begins no line of ours, and no terminal obeys it."""
    return line if line.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)


class TextFormatter(logging.Formatter):
    """`time level agent message key=value …`, a traceback below it if there is one."""

    def __init__(self, agent: str) -> None:
        super().__init__()
        self._agent = agent

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        line = f"{_timestamp(record)} {record.levelname:<7} {self._agent}: {record.getMessage()}{extra}"
        lines = [line, *self.formatException(record.exc_info).split("\n")] if record.exc_info else [line]
        return "\n".join(map(_printable, lines))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, agent: str) -> None:
        super().__init__()
        self._agent = agent

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "agent": self._agent,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def setup(agent: str, *, level: str, style: str, stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (stderr)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(agent) if style == "json" else TextFormatter(agent))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # grpclib logs every error a handler answers with, tracebacks included; criw.rpc has told what there is to tell.
    logging.getLogger("grpclib").setLevel(logging.CRITICAL)
    logging.getLogger("hpack").setLevel(logging.WARNING)  # a line for each header field
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
