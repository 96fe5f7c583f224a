"""The URLs that were given out and not used yet: whoever has one may have the session, once, for a minute."""

import asyncio
import secrets
import time
from typing import Final, TypeAlias

from criw.errors import NotFound, ResourceExhausted
from criw_proto.criw.streams.v1 import Attachment, Command, Forwarding

LIFETIME_S: Final = 60.0
LIMIT: Final = 1000
_BYTES: Final = 16

Session: TypeAlias = Command | Attachment | Forwarding
KINDS: Final[dict[str, type[Session]]] = {"exec": Command, "attach": Attachment, "portforward": Forwarding}


class Tokens:
    def __init__(self, *, lifetime_s: float = LIFETIME_S) -> None:
        self._lifetime_s = lifetime_s
        self._waiting: dict[str, tuple[Session, asyncio.TimerHandle]] = {}
        self.last_gone = time.monotonic()  # when the last one was used or forgotten

    def __len__(self) -> int:
        return len(self._waiting)

    def issue(self, session: Session) -> str:
        """A token for one session, good for a path "kind/token". Raises ResourceExhausted."""
        if len(self._waiting) >= LIMIT:
            raise ResourceExhausted("cannot open a session: maximum number of in-flight requests exceeded; try later")
        token = secrets.token_urlsafe(_BYTES)
        forget = asyncio.get_running_loop().call_later(self._lifetime_s, self._forget, token)
        self._waiting[token] = session, forget
        kind = next(kind for kind, form in KINDS.items() if isinstance(session, form))
        return f"{kind}/{token}"

    def _forget(self, token: str) -> None:
        self._waiting.pop(token)
        self.last_gone = time.monotonic()

    def look(self, path: str) -> Session:
        """The session a path stands for, which stays. Raises NotFound."""
        kind, _, token = path.strip("/").partition("/")
        session, _ = self._waiting.get(token, (None, None))
        if session is None or not isinstance(session, KINDS.get(kind, ())):
            raise NotFound(f"cannot find {path}: the URL was used, is older than a minute, or never was one")
        return session

    def take(self, path: str) -> Session:
        """The session, which no other will get. Raises NotFound."""
        session = self.look(path)
        token = path.strip("/").partition("/")[2]
        self._waiting[token][1].cancel()
        self._forget(token)
        return session
