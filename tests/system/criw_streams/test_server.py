"""The server around sessions: URLs, negotiation, WebSocket's subprotocols, hostile clients, TLS, idleness."""

import asyncio
import base64
import contextlib
import ssl
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from criw.config.crew import Config
from criw.errors import ResourceExhausted
from criw.rpc.client import call
from criw.spdy.frames import Data, Frame, Ping, SynStream, Writer
from criw_proto.criw.streams.v1 import Forwarding, OpenRequest, StreamsStub
from support.client import Client
from support.crew import Crew, running_crew
from support.streaming import (
    FORWARD,
    LIMIT_S,
    STDERR,
    STDIN,
    STDOUT,
    TRANSPORTS,
    UPGRADE,
    V4,
    V5,
    Answered,
    exec_url,
    over_spdy,
    over_websocket,
    read_all,
    read_until,
    upgrade,
)

MIB = 1024 * 1024
ALL = [V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]


def token_of(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]


async def refused(url: str, versions: Sequence[str] = (V4,), **how: object) -> Answered:
    with pytest.raises(Answered) as caught:
        await upgrade(url, versions, **how)  # type: ignore[arg-type]  # what `upgrade` takes
    return caught.value


async def echoes(url: str) -> None:
    """The URL works."""
    async with over_spdy(url) as remote:
        assert await read_all(remote, STDOUT) == b"works\n"


async def raw(url: str, *data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.writelines(data)
    return reader, writer


def head(url: str, *lines: str, method: str = "POST") -> bytes:
    where = urlsplit(url)
    return "\r\n".join([f"{method} {where.path} HTTP/1.1", f"Host: {where.netloc}", *lines, "", ""]).encode()


# --- URLs


async def test_a_url_is_good_once_and_for_its_own_kind(client: Client, container: str) -> None:
    url = await exec_url(client, container, "echo", "works")
    for kind in ("attach", "portforward", "other"):
        assert (await refused(url.replace("/exec/", f"/{kind}/"))).status == 404
    await echoes(url)
    assert (await refused(url)).status == 404
    assert (await refused(url.replace(token_of(url), "unknown"))).status == 404
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(url, protocols=[V5])
        assert caught.value.status == 404
        for answer in (await session.get(url), await session.post(url)):
            assert answer.status == 404


async def test_a_refused_negotiation_leaves_the_url(client: Client, container: str) -> None:
    url = await exec_url(client, container, "echo", "works")
    assert (await refused(url, headers=["Upgrade: SPDY/3.1"])).status == 400
    assert (await refused(url, ())).status == 400
    assert (await refused(url, [""])).status == 400
    told = await refused(url, ["v9.channel.k8s.io", FORWARD])
    assert told.status == 403
    accepted = [line.partition(": ") for line in told.head.split("\r\n")]
    named = [name for header, _, name in accepted if header == "X-Accepted-Stream-Protocol-Versions"]
    assert sorted(named) == sorted([V5, *ALL])
    assert (await refused(url, method="PUT")).status == 405
    async with aiohttp.ClientSession() as session:
        assert (await session.get(url)).status == 400
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(url, protocols=["v9.channel.k8s.io"])
        assert caught.value.status == 403
        old = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "8", "Sec-WebSocket-Key": "x"}
        assert (await session.get(url, headers=old)).status == 400
    await echoes(url)


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ([V5, V4], V5),
        (["v3.channel.k8s.io", V4], "v3.channel.k8s.io"),
        (["unknown, v2.channel.k8s.io", V4], "v2.channel.k8s.io"),
        (["unknown,v4.channel.k8s.io,channel.k8s.io"], V4),
        (["channel.k8s.io"], "channel.k8s.io"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_clients_first_that_is_known_is_chosen(
    client: Client, container: str, versions: list[str], chosen: str, method: str
) -> None:
    headers = ("connection: keep-alive, UPGRADE", "upgrade: spdy/3.1")
    url = await exec_url(client, container, "true")
    spdy, told = await upgrade(url, versions, headers=headers, method=method)
    assert f"X-Stream-Protocol-Version: {chosen}" in told.split("\r\n")
    spdy.abort()


# --- SPDY


async def test_what_is_sent_with_the_request_belongs_to_the_session(client: Client, container: str) -> None:
    url, writer = await exec_url(client, container, "cat", stdin=True), Writer()
    kinds = ("error", "stdin", "stdout", "stderr")
    frames: list[Frame] = [SynStream(2 * at + 1, {"streamtype": kind}) for at, kind in enumerate(kinds)]
    frames += [Data(3, b"early"), Data(3, b"", True), Ping(1)]
    lines = (*UPGRADE, f"X-Stream-Protocol-Version: {V4}")
    reader, sending = await raw(url, head(url, *lines), *(writer.encode(frame) for frame in frames))
    async with asyncio.timeout(LIMIT_S):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert struct.pack(">II", 0x80030006, 4) + struct.pack(">I", 1) in answer  # the pong
    assert b"early" in answer
    assert b'"Success"' in answer
    sending.close()


_FLOODS = {
    "no frames": b"\x80\x03\x00\x63" * 64,
    "a stream zero": bytes(8),
    "headers of nothing": struct.pack(">IIIIH", 0x80030001, 14, 1, 0, 0) + b"\xff" * 4,
    "a frame too long": struct.pack(">II", 0x80030001, 0xFFFFFF),
    "a million empty frames": struct.pack(">II", 1, 0) * 1_000_000,
    "updates of windows": struct.pack(">IIII", 0x80030009, 8, 1, 1) * 200_000,
    "settings": struct.pack(">IIIII", 0x80030004, 12, 1, 1, 1) * 200_000,
    "pings": struct.pack(">III", 0x80030006, 4, 1) * 200_000,
}


@pytest.mark.parametrize("flood", _FLOODS)
async def test_a_hostile_client_ends_at_most_its_own_session(
    client: Client, container: str, config: Config, flood: str
) -> None:
    statm = Path(f"/proc/{int((config.state_dir('streams') / '0.lock').read_text())}/statm")
    url = await exec_url(client, container, "cat", stdin=True)
    async with over_spdy(await exec_url(client, container, "cat", stdin=True), (STDIN, STDOUT, STDERR)) as other:
        before = int(statm.read_text().split()[1])
        _, writer = await raw(url, head(url, *UPGRADE, f"X-Stream-Protocol-Version: {V4}"))
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(_FLOODS[flood]), MIB):
                writer.write(_FLOODS[flood][at : at + MIB])  # what comes back is not read
                async with asyncio.timeout(LIMIT_S):
                    await writer.drain()
        await other.send(b"still there")
        await read_until(other, STDOUT, b"still there")
        assert (int(statm.read_text().split()[1]) - before) * 4096 < 32 * MIB
        writer.transport.abort()


async def test_a_head_has_an_end(client: Client, container: str) -> None:
    url = await exec_url(client, container, "echo", "works")
    reader, writer = await raw(url, b"POST / HTTP/1.1\r\nX: ", b"x" * 16 * 1024)
    async with asyncio.timeout(LIMIT_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
    writer.close()
    slow = [await raw(url, b"GET ") for _ in range(100)]
    await echoes(url)
    for _, writer in slow:
        writer.close()


@pytest.mark.parametrize("request_", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n", b"GET /\r\n\r\n", b"\r\n\r\n"])
async def test_what_is_no_request_is_answered_or_closed(client: Client, container: str, request_: bytes) -> None:
    url = await exec_url(client, container, "true")
    reader, writer = await raw(url, request_)
    writer.write_eof()
    async with asyncio.timeout(LIMIT_S):
        assert (await reader.read())[:12] in {b"", b"HTTP/1.0 400", b"HTTP/1.1 400"}
    writer.close()


# --- WebSocket


@pytest.mark.parametrize("subprotocol", ["", "channel.k8s.io", "base64.channel.k8s.io", V4, "v4.base64.channel.k8s.io"])
async def test_the_older_subprotocols(client: Client, container: str, subprotocol: str) -> None:
    in_base64, in_json = "base64" in subprotocol, subprotocol.startswith("v4")
    url = await exec_url(client, container, "sh", "-c", "head -n 3; echo err >&2; exit 3", stdin=True)
    got: dict[int, bytes] = {}
    async with (
        asyncio.timeout(LIMIT_S),
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=[subprotocol] if subprotocol else []) as websocket,
    ):
        assert (websocket.protocol or "") == subprotocol
        greeting = await websocket.receive()
        assert greeting.data == ("1" if in_base64 else b"\1")
        encoded = base64.b64encode(b"first\n").decode()
        if in_base64:
            await websocket.send_str("0not base64")
            await websocket.send_str(f"0{encoded}")
            await websocket.send_bytes(f"0{encoded}".encode())
            await websocket.send_str(f"7{encoded}")
        else:
            await websocket.send_bytes(b"\0first\n")
            await websocket.send_str("\0first\n")
            await websocket.send_bytes(b"\7first\n")
            await websocket.send_bytes(b"\xff\0")  # no half-close here
        await websocket.send_bytes(b"")
        await websocket.send_str(f"0{encoded}" if in_base64 else "\0first\n")
        async for message in websocket:
            raw_data = message.data
            assert isinstance(raw_data, str) == in_base64
            channel, data = int(raw_data[0]), base64.b64decode(raw_data[1:]) if in_base64 else raw_data[1:]
            got[channel] = got.get(channel, b"") + data
        assert websocket.close_code == 1000
    assert got[1] == b"first\n" * 3
    assert got[2] == b"err\n"
    assert got[3].startswith(b"{" if in_json else b"command terminated with non-zero exit code")


async def test_messages_in_fragments_are_joined(client: Client, container: str) -> None:
    url = await exec_url(client, container, "cat", stdin=True)
    key = base64.b64encode(bytes(16)).decode()
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
    reader, writer = await raw(url, head(url, *lines, f"Sec-WebSocket-Protocol: {V5}", method="GET"))

    def frame(opcode: int, data: bytes, *, final: bool = True) -> bytes:
        return bytes((final << 7 | opcode, 0x80 | len(data), 0, 0, 0, 0)) + data

    async with asyncio.timeout(LIMIT_S):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(2, b"\0one ", final=False) + frame(9, b"ping") + frame(0, b"two", final=False))
        writer.write(frame(0, b" three") + frame(2, b"\xff\0"))
        answer = await reader.read()
    assert b"\x8a\x04ping" in answer
    assert b"\1one two three" in answer
    assert answer.endswith(b"\x88\x02\x03\xe8")
    writer.close()


@pytest.mark.parametrize("wrong", [b"\xff", b"\xff\0\0", b"\xff\5"])
async def test_a_close_signal_that_is_none_ends_the_session(client: Client, container: str, wrong: bytes) -> None:
    async with over_websocket(await exec_url(client, container, "cat", stdin=True)) as remote:
        await remote.socket.send_bytes(wrong)
        assert await read_all(remote, STDOUT) == b""
        assert remote.socket.close_code == 1002


async def test_a_ping_is_answered_while_output_waits(client: Client, container: str) -> None:
    url = await exec_url(client, container, "sh", "-c", "head -c 20000000 /dev/zero; read x", stdin=True)
    async with (
        asyncio.timeout(LIMIT_S),
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=[V5], autoping=False, max_msg_size=0) as websocket,
    ):
        await websocket.ping(b"there?")
        size, pong = 0, False
        while size < 20_000_000 or not pong:
            message = await websocket.receive()
            if message.type is aiohttp.WSMsgType.PONG:
                pong = True
            else:
                assert message.type is aiohttp.WSMsgType.BINARY
                size += len(message.data) - 1
        assert pong


# --- an agent alone, which forwards to ports of the host


async def opened(crew: Crew, port: int = 1) -> str:
    """A URL as the supervisor gets it."""
    request = OpenRequest(port_forward=Forwarding(pod_id="none", ports=[port]))
    return (await call(StreamsStub(crew.channel("streams")).open, request, agent="criw-streams")).url


async def test_a_thousand_urls_wait_and_no_more() -> None:
    async with running_crew(["streams"]) as crew, asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as session:
        urls = [await opened(crew) for _ in range(1000)]
        with pytest.raises(ResourceExhausted, match="maximum number of in-flight requests exceeded"):
            await opened(crew)
        async with session.get(f"http://{crew.config.streams.http}/metrics") as answer:
            assert "criw_streams_waiting 1000.0" in (await answer.text()).splitlines()
        spdy, _ = await upgrade(urls[0], [FORWARD])
        spdy.abort()
        await opened(crew)


async def test_an_idle_session_ends_and_one_that_is_pinged_does_not() -> None:
    async with (
        running_crew(["streams"], extra_toml="streams.idle_timeout_s = 1.0\n") as crew,
        asyncio.timeout(LIMIT_S),
        aiohttp.ClientSession() as session,
    ):
        idle, _ = await upgrade(await opened(crew), [FORWARD])
        pinged, _ = await upgrade(await opened(crew), [FORWARD])
        tunnel = f"SPDY/3.1+{FORWARD}"
        quiet = await session.ws_connect(await opened(crew), protocols=[tunnel])
        kept = await session.ws_connect(await opened(crew), protocols=[tunnel], heartbeat=0.2)
        ending, living = (asyncio.create_task(spdy.connection.closed()) for spdy in (idle, pinged))
        reading = [asyncio.create_task(websocket.receive()) for websocket in (quiet, kept)]
        number = 1
        while not (ending.done() and reading[0].done()):
            pinged.connection.send(Ping(number))
            number += 2
            await asyncio.wait({ending, reading[0]}, timeout=0.2)
        assert not living.done()
        assert not reading[1].done()
        pinged.abort()
        idle.abort()
        await living
        reading[1].cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def test_the_agent_stops_at_once_with_sessions_of_both_kinds() -> None:
    async with (
        running_crew(["streams"]) as crew,
        asyncio.timeout(LIMIT_S),
        aiohttp.ClientSession() as session,
    ):
        spdy, _ = await upgrade(await opened(crew), [FORWARD])
        websocket = await session.ws_connect(await opened(crew), protocols=[f"SPDY/3.1+{FORWARD}"])
        before = asyncio.get_running_loop().time()
        await crew.stop("streams")
        assert asyncio.get_running_loop().time() - before < 15
        await spdy.connection.closed()
        while (message := await websocket.receive()).type is aiohttp.WSMsgType.BINARY:  # SPDY's own good-bye
            pass
        assert message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}
        spdy.abort()
        await crew.start("streams")


async def test_over_tls(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    words += [
        "-subj",
        "/CN=criw",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
    context = ssl.create_default_context(cafile=certificate)
    toml = f'streams.tls_cert = "{certificate}"\nstreams.tls_key = "{key}"\n'
    async with running_crew(["streams"], extra_toml=toml) as crew, asyncio.timeout(LIMIT_S):
        url = await opened(crew)
        assert url.startswith("https://127.0.0.1:")
        for transport in TRANSPORTS:
            url = await opened(crew)
            where, writer = urlsplit(url), Writer()
            streams = b"".join(
                writer.encode(SynStream(number, {"streamtype": kind, "port": "1", "requestid": "0"}))
                for number, kind in ((1, "error"), (3, "data"))
            )
            if transport == "websocket":
                async with aiohttp.ClientSession() as session:
                    websocket = await session.ws_connect(url, protocols=[f"SPDY/3.1+{FORWARD}"], ssl=context)
                    await websocket.send_bytes(streams)
                    answer = b""
                    while b"Connection refused" not in answer:
                        answer += await websocket.receive_bytes()
                    await websocket.close()
                continue
            reader, sending = await asyncio.open_connection(where.hostname, where.port, ssl=context)
            sending.write(head(url, *UPGRADE, f"X-Stream-Protocol-Version: {FORWARD}") + streams)
            await reader.readuntil(b"Connection refused")
            sending.write(writer.encode(Ping(1)))
            await reader.readuntil(struct.pack(">III", 0x80030006, 4, 1))
            sending.close()
