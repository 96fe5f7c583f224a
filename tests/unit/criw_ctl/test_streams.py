"""exec and attach as processes of their own, against a scripted runtime: bytes, exit codes, and how sessions end."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.errors import Failed
from criw_ctl.streams import NotRun, exit_code
from criw_proto.runtime import v1 as cri
from support.fake_streaming import (
    CRON,
    LIMIT_S,
    WEB,
    Ended,
    Peer,
    Streaming,
    criwctl,
    end,
    ended_with,
    failed_with,
    start,
    streaming,
)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Streaming]:
    async with streaming(tmp_path) as server:
        yield server


async def test_output_is_exact_and_each_stream_goes_to_its_own(server: Streaming) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(1, bytes(range(256)) + b"\r\n\xff")
        await peer.say(2, b"no\n")
        await peer.say(7, b"from a later version")
        await peer.say(1, b"end")
        await peer.end()

    server.script = script
    assert await criwctl(server, "exec", "web", "ls", "-l") == Ended(0, bytes(range(256)) + b"\r\n\xffend", "no\n")
    assert server.runtime.asked == [cri.ExecRequest(container_id=WEB, cmd=["ls", "-l"], stdout=True, stderr=True)]


@pytest.mark.parametrize("code", [1, 7, 126, 127, 137, 255])
async def test_the_commands_exit_code_is_ours(server: Streaming, code: int) -> None:
    server.script = lambda peer: peer.end(ended_with(code))
    assert await criwctl(server, "exec", "web", "false") == Ended(code, b"", "")


@pytest.mark.parametrize(
    ("name", "container"), [("web", WEB), ("cron", CRON), ("job", CRON), ("cron/job", CRON), ("2222", CRON)]
)
async def test_a_pod_with_one_container_is_as_good_as_that(server: Streaming, name: str, container: str) -> None:
    assert (await criwctl(server, "exec", name, "--", "true")).code == 0
    (asked,) = server.runtime.asked
    assert isinstance(asked, cri.ExecRequest)
    assert (asked.container_id, asked.cmd) == (container, ["true"])


async def test_the_end_of_the_input_is_told_and_all_before_it_arrives(server: Streaming) -> None:
    async def cat(peer: Peer) -> None:
        while message := await peer.hear():
            if message == b"\xff\x00":
                break
            assert message[0] == 0
            await peer.say(1, message[1:])
        await peer.end()

    server.script = cat
    text = os.urandom(3_000_000)
    assert await criwctl(server, "exec", "-i", "web", "cat", stdin=text) == Ended(0, text, "")
    assert await criwctl(server, "exec", "-i", "web", "cat", stdin=b"") == Ended(0, b"", "")


async def test_input_may_be_a_file_or_nothing(server: Streaming, tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def script(peer: Peer) -> None:
        while (message := await peer.hear()) != b"\xff\x00":
            heard.append(message)
        await peer.end()

    server.script = script
    (tmp_path / "file").write_bytes(b"text")
    for name in (tmp_path / "file", Path(os.devnull)):
        with name.open("rb") as file:
            process = await start(server, "exec", "-i", "web", "cat", stdin=file.fileno())
        assert (await end(process)).code == 0
    assert heard == [b"\x00text"]


async def test_without_i_no_input_is_sent(server: Streaming) -> None:
    heard: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.end()
        heard.append(await peer.hear())

    server.script = script
    assert (await criwctl(server, "exec", "web", "true", stdin=b"text")).code == 0
    assert heard == [b""]


async def test_fragments_and_split_statuses_are_put_together(server: Streaming) -> None:
    async def script(peer: Peer) -> None:
        transport = peer.websocket._req.transport if peer.websocket._req else None
        assert transport is not None
        transport.write(b"\x02\x03\x01on" + b"\x80\x02e\n")  # one message in two frames
        status = ended_with(9)
        await peer.say(3, status[:30])
        await peer.say(1, b"two\n")
        await peer.say(3, status[30:])
        await peer.websocket.close()

    server.script = script
    assert await criwctl(server, "exec", "web", "x") == Ended(9, b"one\ntwo\n", "")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('exec: "nope": executable file not found in $PATH', 127),
        ("stat /no/such: no such file or directory", 127),
        ("exec /etc/passwd: permission denied", 126),
        ("the container has ended", 1),
    ],
)
async def test_what_could_not_be_run_is_told_in_one_line(server: Streaming, message: str, code: int) -> None:
    server.script = lambda peer: peer.end(failed_with(f"error executing command in container:\n{message}"))
    done = await criwctl(server, "exec", "web", "nope")
    assert (done.code, done.out) == (code, b"")
    (line,) = done.err.splitlines()
    assert line.startswith("criwctl: cannot run it in the container: ")
    assert message in line


async def test_a_server_that_vanishes_is_told(server: Streaming) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(1, b"some")
        assert peer.websocket._req is not None
        transport = peer.websocket._req.transport
        assert transport is not None
        transport.abort()

    server.script = script
    done = await criwctl(server, "exec", "web", "x")
    assert (done.code, done.out) == (1, b"some")
    assert "the streaming server went away" in done.err


@pytest.mark.parametrize("code", [1001, 1011])
async def test_another_close_code_than_the_normal_one_is_no_success(server: Streaming, code: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.websocket.close(code=code)

    server.script = script
    done = await criwctl(server, "exec", "web", "x")
    assert done.code == 1
    assert "went away" in done.err


async def test_a_server_that_is_not_there_is_told(server: Streaming) -> None:
    server.runtime.base = "http://127.0.0.1:1"
    done = await criwctl(server, "exec", "web", "x")
    assert (done.code, done.out) == (1, b"")
    assert done.err.startswith("criwctl: cannot reach the streaming server: ")
    server.runtime.base = f"http://127.0.0.1:{server.port}/no/such"
    assert "answers 404" in (await criwctl(server, "exec", "web", "x")).err


async def test_a_crew_without_sessions_says_what_works_instead(server: Streaming) -> None:
    server.runtime.exec = super(type(server.runtime), server.runtime).exec  # type: ignore[method-assign]
    done = await criwctl(server, "exec", "web", "x")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("criwctl: cannot answer Exec: this version does not have it yet; ")
    assert "--sync" in line


async def test_a_reader_that_has_enough_ends_it_quietly(server: Streaming) -> None:
    async def endless(peer: Peer) -> None:
        while True:
            await peer.say(1, b"y\n" * 10_000)

    server.script = endless
    process = await start(server, "exec", "web", "yes")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"y\n"
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    assert process.stderr is not None
    assert await asyncio.wait_for(process.stderr.read(), LIMIT_S) == b""
    assert await asyncio.wait_for(process.wait(), LIMIT_S) == 1


async def test_a_reader_that_stops_stops_the_server(server: Streaming) -> None:
    sent = 0
    stuck = asyncio.Event()

    async def script(peer: Peer) -> None:
        nonlocal sent
        try:
            while sent < 64_000_000:
                async with asyncio.timeout(1):
                    await peer.say(1, b"x" * 32_000)
                sent += 32_000
        except TimeoutError:
            stuck.set()

    server.script = script
    process = await start(server, "exec", "web", "x")
    await asyncio.wait_for(stuck.wait(), LIMIT_S)
    assert sent < 32_000_000  # of kernels' buffers
    pidfd, over = os.pidfd_open(process.pid), asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, over.set)
    process.send_signal(signal.SIGTERM)  # and a stuck write does not keep it from ending
    try:
        await asyncio.wait_for(over.wait(), LIMIT_S)
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
    assert (await end(process)).code == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_as_a_shell_tells(server: Streaming, number: signal.Signals) -> None:
    begun = asyncio.Event()

    async def script(peer: Peer) -> None:
        begun.set()
        assert await peer.hear() == b""

    server.script = script
    process = await start(server, "exec", "web", "sleep")
    await asyncio.wait_for(begun.wait(), LIMIT_S)
    process.send_signal(number)
    assert await end(process) == Ended(128 + number, b"", "")


async def test_attach_takes_the_streams_the_container_was_made_with(server: Streaming) -> None:
    server.runtime.config = {"stdin": True}
    server.script = lambda peer: peer.end()
    assert (await criwctl(server, "attach", "web")).code == 0
    assert (await criwctl(server, "attach", "--no-stdin", "web")).code == 0
    server.runtime.config = {"tty": True}
    assert (await criwctl(server, "attach", "web")).code == 0
    assert server.runtime.asked == [
        cri.AttachRequest(container_id=WEB, stdin=True, stdout=True, stderr=True),
        cri.AttachRequest(container_id=WEB, stdout=True, stderr=True),
        cri.AttachRequest(container_id=WEB, tty=True, stdout=True),
    ]


async def test_attach_cannot_type_where_there_is_no_stdin(server: Streaming) -> None:
    done = await criwctl(server, "attach", "-i", "web")
    assert done.code == 1
    assert "cannot type into web: it was made without stdin" in done.err
    assert server.runtime.asked == []


@pytest.mark.parametrize("argv", [("exec", "-it", "web", "sh"), ("attach", "web"), ("run", "-it", "busybox")])
async def test_a_terminal_is_wanted_where_one_is_typed_into(server: Streaming, argv: tuple[str, ...]) -> None:
    server.runtime.config = {"stdin": True, "tty": True}
    done = await criwctl(server, *argv, stdin=b"x")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("criwctl: cannot use the input as a terminal: it is not one; give ")
    assert server.runtime.asked == []


async def test_a_terminal_without_input_needs_none(server: Streaming) -> None:
    server.script = lambda peer: peer.end()
    assert (await criwctl(server, "exec", "-t", "web", "ls")).code == 0
    assert server.runtime.asked == [cri.ExecRequest(container_id=WEB, cmd=["ls"], tty=True, stdout=True)]


@pytest.mark.parametrize("status", [b"", b'{"status":"Success"}', b'{"metadata":{},"status":"Success"}'])
def test_success(status: bytes) -> None:
    assert exit_code(status) == 0


@pytest.mark.parametrize("status", [b"x", b"[]", b"{}", b"\xff", ended_with(1).replace(b'"1"', b'"one"')])
def test_a_status_nobody_understands_is_a_failure(status: bytes) -> None:
    with pytest.raises(Failed, match="cannot understand how the session ended"):
        exit_code(status)


def test_a_failure_without_a_reason_is_one() -> None:
    with pytest.raises(NotRun, match="does not say why"):
        exit_code(b'{"status":"Failure","details":{"causes":[{"reason":"Other"}]}}')


async def test_a_server_that_does_not_answer_the_end_is_not_waited_for(server: Streaming) -> None:
    begun, over = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        begun.set()
        await over.wait()

    server.script = script
    process = await start(server, "exec", "web", "sleep")
    try:
        await asyncio.wait_for(begun.wait(), LIMIT_S)
        process.terminate()
        assert (await end(process)).code == 128 + signal.SIGTERM
    finally:
        over.set()
