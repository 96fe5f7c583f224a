"""What is made of conmon's words and files, and the watch over its processes; the real one is in the contract suite."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import Failed, FailedPrecondition
from criw.process import runtime_words
from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.conmon import (
    Exit,
    command,
    created_pid,
    is_there,
    kill_makers,
    read_exit,
    streams,
)
from criw_supervisor.runtimes.handler import Launch, Task
from criw_supervisor.runtimes.watch import Watch

CONTAINER = "c" * 64
RUNTIME = ["/usr/sbin/runc", "--debug", "--root", "/run/x"]


def launch(**changes: object) -> Launch:
    return Launch(Task(CONTAINER, "/criw/p/c"), "web", {}, **changes)  # type: ignore[arg-type]  # the fields by name


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / CONTAINER)
    made.write({})
    (made.directory / "exit").mkdir()
    return made


# --- its command line and its answer


def test_the_command_line(bundle: Bundle) -> None:
    words = command("conmon", RUNTIME, launch(log_path="/logs/web.log"), bundle)
    assert words[words.index("--log-path") + 1] == "k8s-file:/logs/web.log"
    assert words[words.index("--exit-dir") + 1] == str(bundle.directory / "exit")
    assert [word for word in words if word.startswith("--runtime-arg")] == [
        "--runtime-arg=--debug", "--runtime-arg=--root", "--runtime-arg=/run/x",
    ]  # fmt: skip
    assert {"--terminal", "--stdin", "--leave-stdin-open"} & set(words) == set()
    assert "--terminal" in command("conmon", RUNTIME, launch(terminal=True), bundle)
    once = command("conmon", RUNTIME, launch(stdin=True, stdin_once=True), bundle)
    assert ("--stdin" in once, "--leave-stdin-open" in once) == (True, False)
    assert "--leave-stdin-open" in command("conmon", RUNTIME, launch(stdin=True), bundle)
    silent = command("conmon", RUNTIME, launch(), bundle)
    assert silent[silent.index("--log-path") + 1] == "off:"


@pytest.mark.parametrize("key", ["pid", "data"])  # the words of conmon's versions
def test_the_pid_conmon_tells(tmp_path: Path, key: str) -> None:
    assert created_pid("web", json.dumps({key: 4711}).encode(), tmp_path / "conmon.log") == 4711


RUNC = 'time="2026-01-02T03:04:05Z" level=error msg="runc create failed: exec: \\"nope\\": not found in $PATH"'


@pytest.mark.parametrize(
    ("line", "complaint", "message"),
    [
        (json.dumps({"pid": -1, "message": RUNC + "\n"}), "", 'runc create failed: exec: "nope": not found in $PATH'),
        (json.dumps({"data": -1, "message": ""}), RUNC, 'runc create failed: exec: "nope": not found in $PATH'),
        (
            json.dumps({"pid": -1}),
            "[conmon:e]: Runtime path does not exist\n",
            "[conmon:e]: Runtime path does not exist",
        ),
        ("", "", "conmon ended without a word"),
        ("no json", "", "conmon ended without a word"),
    ],
)
def test_what_went_wrong_is_told_in_the_runtimes_own_words(
    tmp_path: Path, line: str, complaint: str, message: str
) -> None:
    (tmp_path / "conmon.log").write_text(complaint)
    with pytest.raises(Failed) as caught:
        created_pid("web", line.encode(), tmp_path / "conmon.log")
    assert str(caught.value) == f"cannot create container web: {message}"


@given(st.text())
def test_the_message_of_a_log_line_is_taken_out_of_its_quotes(message: str) -> None:
    line = f"time=x level=error msg={json.dumps(message)}"
    if 'msg="' not in message:
        assert runtime_words(line) == message


@given(st.text(), st.sampled_from(["", 'level=error msg="']))
def test_words_that_are_no_log_line_are_told_as_they_are(text: str, beginning: str) -> None:
    words = beginning + text.replace('"', "'")  # a message that begins and never ends is none
    assert runtime_words(words) == words


def test_the_last_of_several_log_lines_counts() -> None:
    assert runtime_words('level=warning msg="never mind"\nlevel=error msg="it is broken"\n') == "it is broken"


# --- its files


def test_an_exit_has_its_code_and_the_time_conmon_wrote_it(bundle: Bundle) -> None:
    assert read_exit(bundle) is None
    path = bundle.directory / "exit" / CONTAINER
    path.write_text("137")
    os.utime(path, ns=(5, 1_234_567_890_123_456_789))
    assert read_exit(bundle) == Exit(137, 1_234_567_890_123_456_789)


@pytest.mark.parametrize("text", ["", "nonsense"])  # a full disk leaves the first
def test_a_file_without_a_code_is_no_exit(bundle: Bundle, text: str) -> None:
    (bundle.directory / "exit" / CONTAINER).write_text(text)
    assert read_exit(bundle) is None


def test_streams_nobody_holds_any_more_cannot_be_reached(bundle: Bundle) -> None:
    with pytest.raises(FailedPrecondition, match="its conmon has ended"):
        streams(bundle)


# --- its process


def monitor(bundle: Bundle) -> subprocess.Popen[bytes]:
    """A process that passes for the bundle's conmon until its standard input is closed."""
    process = subprocess.Popen([sys.executable, "-c", "input()", str(bundle.directory)], stdin=subprocess.PIPE)
    (bundle.directory / "conmon.pid").write_text(str(process.pid))
    until = time.monotonic() + 10
    while not is_there(bundle):  # the kernel shows arguments a moment after execve
        assert time.monotonic() < until
    return process


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def first(ended: AsyncIterator[str]) -> str:
    return await asyncio.wait_for(anext(ended), 5)


async def test_the_end_of_a_conmon_is_told_and_it_is_reaped(bundle: Bundle) -> None:
    process = monitor(bundle)
    watch, before = Watch(), descriptors()
    watch.add(CONTAINER, bundle)
    telling = asyncio.create_task(first(watch.ended()))
    await asyncio.sleep(0)
    assert not telling.done()
    assert process.stdin is not None
    process.stdin.close()
    assert await telling == CONTAINER
    assert not Path(f"/proc/{process.pid}").exists()  # no zombie
    assert descriptors() == before - 1  # that of our own pipe
    process.wait()


async def test_a_conmon_that_is_gone_or_somebody_else_is_told_at_once(bundle: Bundle) -> None:
    watch = Watch()
    ended = watch.ended()
    process = subprocess.Popen(["true"])
    process.wait()
    for text in (str(process.pid), str(os.getpid()), "", "nonsense"):
        (bundle.directory / "conmon.pid").write_text(text)
        watch.add(CONTAINER, bundle)
        assert await first(ended) == CONTAINER
    (bundle.directory / "conmon.pid").unlink()
    watch.add(CONTAINER, bundle)
    assert await first(ended) == CONTAINER


async def test_closing_gives_back_all_descriptors(bundle: Bundle) -> None:
    process = monitor(bundle)
    watch, before = Watch(), descriptors()
    for _ in range(3):
        watch.add(CONTAINER, bundle)
    assert descriptors() == before + 3
    watch.close()
    watch.close()
    assert descriptors() == before
    process.communicate(b"\n")


# As conmon does: it goes on to start the next program with the bundle in its arguments.
MAKER = """
import subprocess, sys, time
while True:
    subprocess.Popen(["sleep", "600", *sys.argv[1:]])
    time.sleep(0.05)
"""


def working_on(bundle: Path) -> list[Path]:
    mark = os.fsencode(bundle) + b"\0"
    return [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def test_what_works_on_a_bundle_is_killed_also_what_it_starts_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    sleeping = tmp_path / "bin" / "sleep"
    sleeping.write_text("#!/bin/sh\nread x\n")
    sleeping.chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    bundle = tmp_path / "bundle"
    maker = subprocess.Popen([sys.executable, "-c", MAKER, str(bundle)], env=environment, stdin=subprocess.PIPE)
    bystander = subprocess.Popen([sys.executable, "-c", "input()", f"{bundle}-of-another"], stdin=subprocess.PIPE)
    until = time.monotonic() + 10
    while len(working_on(bundle)) < 3:
        assert time.monotonic() < until
    await kill_makers(Bundle(bundle))
    assert maker.wait() == -9
    assert working_on(bundle) == []
    assert bystander.poll() is None
    bystander.communicate(b"\n")
    maker.communicate()
