"""exec, attach, cp, port-forward and run -it against a real crew and real containers."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import stat
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from support import host, images
from support.crew import Crew, python_environment
from support.fake_streaming import Ended, end
from support.registry import running_registry
from support.up import LIMIT_S, running_up


class Host:
    """A crew, and images it can pull."""

    def __init__(self, crew: Crew, registry: str) -> None:
        self.crew = crew
        self.busybox = f"{registry}/library/busybox:latest"
        self.nginx = f"{registry}/library/nginx:latest"

    def command(self, *argv: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "criw_ctl", "--config", os.fspath(self.crew.config_path), *argv)

    async def start(self, *argv: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.command(*argv),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=python_environment(),
        )

    async def criwctl(self, *argv: str, stdin: bytes | None = None) -> Ended:
        kind = asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE
        return await end(await self.start(*argv, stdin=kind), stdin)

    async def ok(self, *argv: str) -> bytes:
        """The output of a command that must succeed without a word on stderr."""
        done = await self.criwctl(*argv)
        assert (done.code, done.err) == (0, ""), f"{argv}: {done}"
        return done.out

    @contextlib.asynccontextmanager
    async def typing(self, *argv: str) -> AsyncIterator["Typed"]:
        """criwctl in a terminal of its own."""
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, 100))

        def control() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = await asyncio.create_subprocess_exec(
            *self.command(*argv),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=python_environment(),
            preexec_fn=control,
        )
        typed = Typed(process, master, slave)
        try:
            yield typed
            assert termios.tcgetattr(slave) == typed.before
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(master)
            os.close(slave)


class Typed:
    """Use `typing()`."""

    def __init__(self, process: asyncio.subprocess.Process, master: int, slave: int) -> None:
        self.process = process
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        self._master = master
        os.set_blocking(master, False)
        self._shown = b""

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    async def show(self, pattern: bytes) -> None:
        """Wait for what matches, after what was waited for before."""
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._master, ready.set)
        try:
            async with asyncio.timeout(LIMIT_S):
                while (found := re.search(pattern, self._shown)) is None:
                    await ready.wait()
                    ready.clear()
                    with contextlib.suppress(BlockingIOError):
                        self._shown += os.read(self._master, 4096)
        except TimeoutError as err:
            raise AssertionError(f"{pattern!r} is not shown, but {self._shown!r}") from err
        finally:
            loop.remove_reader(self._master)
        self._shown = self._shown[found.end() :]

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)


@pytest_asyncio.fixture(scope="module")
async def host_of_module() -> AsyncIterator[Host]:
    async with running_registry() as registry:
        await registry.push("library/busybox:latest", images.busybox())
        await registry.push("library/nginx:latest", images.nginx())
        crew = Crew(f'log_level = "info"\n[image.registries."{registry.address}"]\nplain_http = true\n')
        async with running_up(crew) as up:
            await up.complete()
            host_of_module = Host(crew, registry.address)
            for image in (host_of_module.busybox, host_of_module.nginx):
                assert (await host_of_module.criwctl("pull", image)).code == 0
            yield host_of_module
            for image in (host_of_module.busybox, host_of_module.nginx):
                await host_of_module.ok("rmi", image)
        assert up.process.returncode == 0
        left = host.contents(crew)
        shutil.rmtree(crew.directory)
        assert left == []


@pytest_asyncio.fixture
async def here(host_of_module: Host) -> AsyncIterator[Host]:
    """Without a pod."""
    here = host_of_module
    yield here
    for pod in json.loads(await here.ok("pods", "-o", "json"))["items"]:
        await here.ok("rm", "-f", pod["id"])


async def test_exec_streams_both_outputs_and_gives_the_exit_code(here: Host) -> None:
    await here.ok("run", "-d", "--name", "box", here.busybox, "sleep", "1000")
    done = await here.criwctl("exec", "box", "sh", "-c", "printf out; echo err >&2; exit 7")
    assert done == Ended(7, b"out", "err\n")
    assert (await here.criwctl("exec", "box", "sh", "-c", "kill -9 $$")).code == 137
    missing = await here.criwctl("exec", "box", "/no/such")
    assert missing.code == 127
    assert "/no/such" in missing.err

    size = 40_000_000  # more than ExecSync gives
    assert await here.ok("exec", "box", "head", "-c", str(size), "/dev/zero") == bytes(size)
    process = await here.start("exec", "box", "sh", "-c", "echo first; sleep 1000")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), LIMIT_S) == b"first\n"  # as it comes
    process.send_signal(signal.SIGINT)
    assert (await end(process)).code == 130


async def test_exec_takes_input_to_its_end(here: Host) -> None:
    await here.ok("run", "-d", "--name", "box", here.busybox, "sleep", "1000")
    text = os.urandom(5_000_000)
    done = await here.criwctl("exec", "-i", "box", "sha256sum", stdin=text)
    assert done == Ended(0, f"{hashlib.sha256(text).hexdigest()}  -\n".encode(), "")
    assert await here.criwctl("exec", "-i", "box", "cat", stdin=text) == Ended(0, text, "")


async def test_a_shell_in_a_terminal(here: Host) -> None:
    await here.ok("run", "-d", "--name", "box", here.busybox, "sleep", "1000")
    async with here.typing("exec", "-it", "box", "sh") as shell:
        await shell.show(rb"# ")
        shell.press(b"tty; stty size\r")
        await shell.show(rb"/dev/pts/\d+\r\n30 100\r\n")
        termios.tcsetwinsize(shell.slave, (40, 120))
        shell.press(b"while ! stty size | grep '40 120'; do sleep 0.1; done; echo d''one\r")
        await shell.show(rb"\n40 120\r\ndone\r\n")
        shell.press(b"sh -c 'echo go; exec sleep 1000'\r")
        await shell.show(rb"\ngo\r\n")
        shell.press(b"\x03")  # goes to the program
        await shell.show(rb"# ")
        shell.press(b"exit 9\r")
        assert await shell.ended() == 9


async def test_run_it_is_joined_from_the_first_byte_and_removed(here: Host) -> None:
    async with here.typing("run", "-it", "--rm", here.busybox, "sh", "-c", "echo first; exec sh") as shell:
        await shell.show(rb"first\r\n")
        shell.press(b"echo $TERM; exit 4\r")
        await shell.show(rb"\nxterm\r\n")
        assert await shell.ended() == 4
    assert json.loads(await here.ok("pods", "-o", "json"))["items"] == []
    done = await here.criwctl("run", "-i", "--rm", here.busybox, "wc", "-c", stdin=b"x" * 100_000)
    assert done == Ended(0, b"100000\n", "")
    assert json.loads(await here.ok("pods", "-o", "json"))["items"] == []


async def test_a_terminal_is_left_and_joined_again(here: Host) -> None:
    async with here.typing("run", "-it", "--name", "box", here.busybox, "sh") as shell:
        await shell.show(rb"# ")
        shell.press(b"word=kept\r\x10\x11")
        await shell.show(rb"detached from box")
        assert await shell.ended() == 0
    async with here.typing("attach", "box") as shell:
        shell.press(b"echo $word\r")
        await shell.show(rb"\nkept\r\n")
        shell.press(b"exit\r")
        assert await shell.ended() == 0
    assert json.loads(await here.ok("ps", "-o", "json"))["containers"] == []


async def test_attach_shows_what_comes_from_now_on(here: Host) -> None:
    script = "i=0; while sleep 0.1; do i=$((i + 1)); echo $i; echo e$i >&2; done"
    await here.ok("run", "-d", "--name", "box", here.busybox, "sh", "-c", script)
    process = await here.start("attach", "box")
    assert process.stdout is not None
    first = int(await asyncio.wait_for(process.stdout.readline(), LIMIT_S))
    assert int(await asyncio.wait_for(process.stdout.readline(), LIMIT_S)) == first + 1
    await here.ok("rm", "-f", "box")
    done = await end(process)
    assert done.code == 0
    assert re.fullmatch(r"(e\d+\n)+", done.err)


def described(tree: Path) -> dict[str, tuple[int, int, str]]:
    return {
        os.fspath(path.relative_to(tree)): (
            stat.S_IMODE(path.stat().st_mode),
            int(path.stat().st_mtime),
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [tree, *tree.rglob("*")]
    }


async def test_a_tree_is_copied_in_and_out(here: Host, tmp_path: Path) -> None:
    await here.ok("run", "-d", "--name", "box", here.busybox, "sleep", "1000")
    deep = tmp_path / "tree" / ("long" * 30) / ("name" * 30)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(os.urandom(20_000_000))
    (deep / "f").chmod(0o640)
    os.utime(deep / "f", (1, 1_234_567_890))
    (tmp_path / "tree" / "empty").mkdir(mode=0o750)
    await here.ok("cp", f"{tmp_path}/tree", "box:/tmp/copy")
    inside = (await here.ok("exec", "box", "sha256sum", f"/tmp/copy/{deep.relative_to(tmp_path / 'tree')}/f")).split()[
        0
    ]
    assert inside.decode() == hashlib.sha256((deep / "f").read_bytes()).hexdigest()
    await here.ok("cp", "box:/tmp/copy", f"{tmp_path}/back")
    assert described(tmp_path / "back") == described(tmp_path / "tree")


async def test_a_page_is_fetched_through_a_forwarded_port(here: Host) -> None:
    await here.ok("run", "-d", "--name", "web", here.nginx)
    process = await here.start("port-forward", "web", ":80", ":81")
    assert process.stdout is not None
    ports = []
    for _ in range(2):
        line = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
        found = re.match(rb"127\.0\.0\.1:(\d+) leads to port 8[01] of web\n", line)
        assert found, line
        ports.append(int(found[1]))
    page, nobody = (f"http://127.0.0.1:{port}/" for port in ports)
    assert await asyncio.gather(*(fetch(page) for _ in range(5))) == [images.PAGE] * 5
    assert await fetch(nobody) == ""
    assert await fetch(page) == images.PAGE
    process.send_signal(signal.SIGINT)
    done = await end(process)
    assert done.code == 0
    assert "cannot forward a connection to port 81" in done.err


async def fetch(url: str) -> str:
    process = await asyncio.create_subprocess_exec("busybox", "wget", "-qO-", url, stdout=-1, stderr=-1)
    return (await end(process)).out.decode()
