"""Who may use a socket, should the file's mode have let them in: real processes of other users try it."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from criw.process import run
from support.serving import Scripted, serving

pytestmark = pytest.mark.root

NOBODY = 65534
GROUP = 12345
# Greets as an HTTP/2 client (RFC 9113, section 3.4) with empty settings and a ping: does the ping come back?
CLIENT = r"""
import socket, sys
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(sys.argv[1])
    ping = b"\0\0\x08\x06%c\0\0\0\0criwcriw"
    said = b""
    try:
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" + ping % 0)
        while ping % 1 not in said:
            if not (more := peer.recv(4096)):
                break
            said += more
    except ConnectionError:
        pass
    print("served" if ping % 1 in said else "refused")
"""


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A socket's path in a directory everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="criw-peer-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "agent.sock"


async def outcome(path: Path, *, uid: int, gid: int, groups: Sequence[int] = ()) -> str:
    """What happens to a client of this user and these groups."""
    ids = [f"--reuid={uid}", f"--regid={gid}"]
    ids.append(f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups")
    done = await run(["setpriv", *ids, "/usr/bin/python3", "-c", CLIENT, os.fspath(path)], timeout_s=20)
    assert done.code == 0, done.message
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "expected"),
    [
        pytest.param(0, 0, (), "served", id="root"),
        pytest.param(NOBODY, NOBODY, (), "refused", id="another user"),
        pytest.param(NOBODY, GROUP, (), "served", id="the group is its primary one"),
        pytest.param(NOBODY, NOBODY, (7, GROUP), "served", id="the group is another of its groups"),
        pytest.param(NOBODY, NOBODY, (7, GROUP + 1), "refused", id="other groups"),
        pytest.param(NOBODY, NOBODY, (*range(1000, 1300), GROUP), "refused", id="too many groups to be read"),
        pytest.param(NOBODY, GROUP, range(1000, 1300), "served", id="too many groups, primary one counts"),
    ],
)
async def test_only_root_and_the_group_are_served(
    uid: int, gid: int, groups: Sequence[int], expected: str, open_path: Path
) -> None:
    async with serving(open_path, Scripted(lambda _: never()), group=GROUP):
        open_path.chmod(0o666)
        assert await outcome(open_path, uid=uid, gid=gid, groups=groups) == expected


async def test_without_a_group_only_root_is_served(open_path: Path) -> None:
    async with serving(open_path, Scripted(lambda _: never())):
        open_path.chmod(0o666)
        assert await outcome(open_path, uid=NOBODY, gid=0) == "refused"
        assert await outcome(open_path, uid=0, gid=GROUP) == "served"


async def never() -> None:
    raise AssertionError("no call was made")
