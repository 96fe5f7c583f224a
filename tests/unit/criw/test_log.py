import io
import json
import logging
from collections.abc import Iterator

import pytest

from criw import log

logger = logging.getLogger("criw.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where a test logs to; logging is as before afterwards."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield io.StringIO()
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_text_is_one_line_an_event(stream: io.StringIO) -> None:
    log.setup("criw-image", level="info", style="text", stream=stream)
    logger.info("pulled %s", "busybox", extra={"layers": 3})
    logger.debug("not shown")
    (line,) = stream.getvalue().splitlines()
    time, _, rest = line.partition(" ")
    assert rest == "INFO    criw-image: pulled busybox layers=3"
    assert len(time) == len("2026-01-02T03:04:05.678Z")
    assert time.endswith("Z")


def test_text_from_outside_cannot_begin_a_line(stream: io.StringIO) -> None:
    log.setup("criw-image", level="info", style="text", stream=stream)
    logger.info("registry says %s", "no\n2026 ERROR forged", extra={"header": "a\nb"})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"registry says no\n2026 ERROR forged header=a\nb")


def test_text_from_outside_is_nothing_a_terminal_obeys(stream: io.StringIO) -> None:
    log.setup("criw-image", level="info", style="text", stream=stream)
    try:
        raise ValueError("evil\x1b[2J")
    except ValueError:
        logger.exception("registry says %s", "\x1b]0;title\x07\r\u202eä")
    said = stream.getvalue()
    assert r"registry says \x1b]0;title\x07\r\u202eä" in said
    assert said.splitlines()[-1] == r"ValueError: evil\x1b[2J"
    assert all(line.isprintable() for line in said.split("\n"))


def test_a_traceback_follows_its_line(stream: io.StringIO) -> None:
    log.setup("criw-image", level="info", style="text", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    first, second, *_, last = stream.getvalue().splitlines()
    assert first.endswith("ERROR   criw-image: failed")
    assert second.startswith("Traceback")
    assert last == "ValueError: broken"


def test_json_is_one_object_a_line(stream: io.StringIO) -> None:
    log.setup("criw-image", level="debug", style="json", stream=stream)
    logger.debug("two\nlines", extra={"path": object, "number": 5})
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (
        first.items()
        >= {
            "level": "debug",
            "agent": "criw-image",
            "logger": "criw.test",
            "message": "two\nlines",
            "number": 5,
            "path": "<class 'object'>",
        }.items()
    )
    assert first["time"].endswith("Z")
    assert "traceback" not in first
    assert second["traceback"].endswith("ValueError: broken")
