"""What strangers say: documents are parsed here and nowhere else, words are cleaned here before they are repeated."""

import json
from typing import Final

from yarl import URL

_DEPTH_LIMIT: Final = 100  # no document we read is nested deeper; what is costs whoever walks through it
_SAID_LIMIT: Final = 300
_PROBLEMS_LIMIT: Final = 5


def json_object(data: bytes) -> dict[str, object]:
    """The JSON object (RFC 8259) that `data` is; entries that are null count as absent, as Go's writers mean them.

    Raises ValueError for everything else: also for a number of too many digits, NaN, and what is nested too deeply.
    """
    try:
        document = json.loads(data.decode(), parse_constant=_no_number)
    except RecursionError as err:
        raise ValueError("it is nested too deeply") from err
    if not isinstance(document, dict):
        raise ValueError("it is no object")  # noqa: TRY004 — of the data, not of a caller
    if _is_deep(document):
        raise ValueError("it is nested too deeply")
    return {key: value for key, value in document.items() if value is not None}


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is no number")


def _is_deep(document: object) -> bool:
    level = [document]
    for _ in range(_DEPTH_LIMIT):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    return bool(level)


def cleaned(text: object, *, limit: int = _SAID_LIMIT) -> str:
    """A stranger's words in one line of at most `limit` characters, without any that a terminal would obey."""
    line = " ".join("".join(one if one.isprintable() else " " for one in str(text)[: 4 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def refusal_in(body: bytes) -> str:
    """What a registry says about its refusal (distribution-spec, error codes), in brackets; empty if nothing."""
    try:
        problems = json_object(body).get("errors")
    except ValueError:
        return ""  # a page for people, or nothing
    if not isinstance(problems, list):
        return ""
    said = "; ".join(_problem(one) for one in problems[:_PROBLEMS_LIMIT] if isinstance(one, dict))
    return f" ({cleaned(said)})" if said else ""


def _problem(one: dict[object, object]) -> str:
    """The code in the words that people look for, MANIFEST_UNKNOWN as "manifest unknown", and the message."""
    code, message = str(one.get("code") or "").replace("_", " ").lower(), str(one.get("message") or "")
    return message if message.lower().startswith(code) else ": ".join(part for part in (code, message) if part)


def token_in(body: bytes) -> str:
    """The token a token server gives; empty if it gives none that can be sent in a header."""
    try:
        answer = json_object(body)
    except ValueError:
        return ""
    token = answer.get("token") or answer.get("access_token")
    return token if isinstance(token, str) and can_be_sent(token) else ""


def can_be_sent(text: str) -> bool:
    """Whether `text` may stand in a header: it has no line break, nor anything else but visible ASCII and spaces."""
    return text.isascii() and text.isprintable()


def address(text: str, *, beside: URL | None = None) -> URL:
    """The HTTP address a stranger names, perhaps relative to `beside`; without a user, who would be none of ours.

    It is kept as it is written: a signed URL does not survive being quoted again. Raises ValueError for an address that
    nothing can be sent to.
    """
    url = URL(text, encoded=can_be_sent(text) and " " not in text)
    if beside is not None:
        url = beside.join(url)
    if url.scheme not in {"http", "https"}:
        raise ValueError(f"{cleaned(url.scheme) or 'no scheme'} is not HTTP")
    if not url.host:
        raise ValueError("there is no host")
    url.host.encode("idna")  # as the resolver will; UnicodeError is a ValueError
    if url.port == 0:
        raise ValueError("there is no port 0")
    return url.with_user(None)
