"""Ids of pods and containers, and the prefixes people type for them."""

import re
import secrets
from collections.abc import Iterable
from typing import Final

from criw.errors import NotFound

ID_LENGTH: Final = 64
_ID: Final = re.compile(r"[0-9a-f]{64}")


def new_id() -> str:
    """A fresh id: 64 lower-case hex digits, as cAdvisor and other tools expect of a CRI runtime."""
    return secrets.token_hex(ID_LENGTH // 2)


def is_id(text: str) -> bool:
    """Whether `text` has the form of a full id."""
    return _ID.fullmatch(text) is not None


def resolve(text: str, ids: Iterable[str], *, what: str) -> str:
    """The one id of `ids` that is `text` or begins with it.

    Raises NotFound when none does, or more than one (crictl passes on what its user typed, cut short).
    """
    if not text:
        raise NotFound(f"cannot find a {what} without an id")
    found: str | None = None
    for candidate in ids:
        if candidate == text:
            return candidate
        if candidate.startswith(text):
            if found is not None:
                raise NotFound(
                    f"cannot tell which {what} {text} means: more than one id begins with it; type more of it"
                )
            found = candidate
    if found is None:
        raise NotFound(f"cannot find {what} {text}: no such id")
    return found
