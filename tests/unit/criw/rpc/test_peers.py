"""Who may use a socket, should the file's mode have let them in: real processes of other users try it."""

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from grpclib.protocol import H2Protocol

from criw.errors import NotFound, PermissionDenied
from criw.metrics import Metrics
from criw.process import run
from criw.rpc.client import DirectChannel, ask
from criw.rpc.peers import Callers, Peer
from criw_proto.criw.network.v1 import DetachRequest, NetworkStub
from criw_proto.grpc.health.v1 import HealthBase, HealthCheckRequest, HealthCheckResponse, HealthStub
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
    async with serving(open_path, Scripted(lambda _: never()), callers=Callers(group=GROUP)):
        open_path.chmod(0o666)
        assert await outcome(open_path, uid=uid, gid=gid, groups=groups) == expected


async def test_without_a_group_only_root_is_served(open_path: Path) -> None:
    async with serving(open_path, Scripted(lambda _: never())):
        open_path.chmod(0o666)
        assert await outcome(open_path, uid=NOBODY, gid=0) == "refused"
        assert await outcome(open_path, uid=0, gid=GROUP) == "served"


async def never() -> None:
    raise AssertionError("no call was made")


class ChannelOf(DirectChannel):
    """The connection of a process of another user: the kernel tells whose it was at that moment."""

    def __init__(self, path: Path, uid: int) -> None:
        super().__init__(path)
        self._path_of_it = path
        self._uid = uid

    async def _create_connection(self) -> H2Protocol:
        peer = socket.socket(socket.AF_UNIX)
        os.seteuid(self._uid)
        try:
            peer.connect(os.fspath(self._path_of_it))
        finally:
            os.seteuid(0)
        peer.setblocking(False)
        _, protocol = await asyncio.get_running_loop().create_unix_connection(self._protocol_factory, sock=peer)
        return protocol


class Health(HealthBase):
    async def check(self, message: HealthCheckRequest) -> HealthCheckResponse:
        raise NotFound("it was asked")


NETWORK = "criw.network.v1.Network"
CALLERS = Callers(group=0, users={NETWORK: frozenset({1001})})  # group 0: the primary one of all these connections


@pytest.mark.parametrize("uid", [0, 1001])
async def test_root_and_those_a_service_is_for_may_call_it(uid: int, open_path: Path) -> None:
    network = Scripted(lambda _: never())
    async with serving(open_path, network, callers=CALLERS):
        open_path.chmod(0o666)
        channel = ChannelOf(open_path, uid)
        await ask(NetworkStub(channel).detach, DetachRequest(pod_id="p"))
        channel.close()
    assert network.calls == ["p"]


async def test_whom_a_service_is_not_for_learns_which_and_who_he_is(
    open_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, metrics = Scripted(lambda _: never()), Metrics("test")
    async with serving(open_path, network, callers=CALLERS, metrics=metrics):
        open_path.chmod(0o666)
        channel = ChannelOf(open_path, 1002)
        with pytest.raises(PermissionDenied, match=rf"^cannot let user 1002 call {NETWORK}: "):
            await ask(NetworkStub(channel).detach, DetachRequest(pod_id="p"))
        channel.close()
    assert network.calls == []
    labels = {"method": f"/{NETWORK}/Detach", "code": "PERMISSION_DENIED"}
    assert metrics.registry.get_sample_value("criw_rpc_total", labels) == 1
    assert [record.levelno for record in caplog.records if record.getMessage() == "refused a call"] == [logging.WARNING]


async def test_a_service_nobody_is_named_for_is_for_root(open_path: Path) -> None:
    async with serving(open_path, Scripted(lambda _: never()), callers=Callers(group=0, users={})):
        open_path.chmod(0o666)
        channel, root = ChannelOf(open_path, 1001), DirectChannel(open_path)
        with pytest.raises(PermissionDenied):
            await ask(NetworkStub(channel).detach, DetachRequest(pod_id="p"))
        await ask(NetworkStub(root).detach, DetachRequest(pod_id="p"))
        channel.close()
        root.close()


async def test_whoever_may_connect_may_ask_for_the_health(open_path: Path) -> None:
    async with serving(open_path, Health(), callers=CALLERS):
        open_path.chmod(0o666)
        channel = ChannelOf(open_path, 1002)
        with pytest.raises(NotFound, match="it was asked"):
            await ask(HealthStub(channel).check, HealthCheckRequest())
        channel.close()


async def test_without_a_table_whoever_may_connect_may_call(open_path: Path) -> None:
    async with serving(open_path, Scripted(lambda _: never()), callers=Callers(group=0)):
        open_path.chmod(0o666)
        channel = ChannelOf(open_path, 1002)
        await ask(NetworkStub(channel).detach, DetachRequest(pod_id="p"))
        channel.close()


def test_a_peer_has_the_user_and_groups_the_kernel_knows() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = Peer.of(ours)
    assert found.uid == os.geteuid()
    assert found.groups == {os.getegid(), *os.getgroups()}
