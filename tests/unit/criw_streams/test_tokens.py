import asyncio

import pytest

from criw.errors import NotFound, ResourceExhausted
from criw_proto.criw.streams.v1 import Attachment, Command, Forwarding
from criw_streams.tokens import KINDS, LIMIT, Session, Tokens

SESSIONS: dict[str, Session] = {"exec": Command(), "attach": Attachment(), "portforward": Forwarding()}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_session_is_had_once_and_at_its_own_path(kind: str) -> None:
    tokens = Tokens()
    path = tokens.issue(SESSIONS[kind])
    token = path.removeprefix(f"{kind}/")
    assert len(token) >= 22  # 16 bytes
    for other in KINDS.keys() - {kind}:
        with pytest.raises(NotFound):
            tokens.take(f"/{other}/{token}")
    assert tokens.look(f"/{path}") is SESSIONS[kind]
    assert tokens.take(f"/{path}") is SESSIONS[kind]
    with pytest.raises(NotFound):
        tokens.take(f"/{path}")
    assert len(tokens) == 0


@pytest.mark.parametrize("path", ["", "/", "exec", "/exec/", "/exec/unknown", "//", "/exec/a/b"])
async def test_what_was_never_issued_is_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        Tokens().look(path)


async def test_a_token_is_forgotten_after_its_lifetime() -> None:
    tokens = Tokens(lifetime_s=0.01)
    path = tokens.issue(Command())
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, over.set)
    await over.wait()  # timers of one moment are called in the order they were made
    with pytest.raises(NotFound, match="older than a minute"):
        tokens.take(path)
    assert len(tokens) == 0


async def test_a_thousand_wait_and_one_more_when_one_was_taken() -> None:
    tokens = Tokens()
    paths = {tokens.issue(Command()) for _ in range(LIMIT)}
    assert len(paths) == LIMIT
    with pytest.raises(ResourceExhausted, match="maximum number of in-flight requests exceeded"):
        tokens.issue(Command())
    for path in paths:
        tokens.take(path)
        tokens.take(tokens.issue(Command()))
