import asyncio
import os
import signal
from pathlib import Path

import pytest

from criw import process
from criw.errors import DeadlineExceeded, Failed, FailedPrecondition
from criw.process import read_line, run


async def gone(pid: int) -> bool:
    """Whether the process, a descendant of ours, ends soon; a zombie that its new parent has not reaped counts."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        await asyncio.sleep(0.01)
    return False


async def test_output_and_exit_code_are_told_apart() -> None:
    done = await run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_input_is_given_and_otherwise_empty() -> None:
    assert (await run(["cat"], stdin=b"x" * 1_000_000)).stdout == b"x" * 1_000_000
    assert (await run(["cat"])).stdout == b""


async def test_a_program_that_reads_no_input_is_no_error() -> None:
    assert (await run(["true"], stdin=b"x" * 1_000_000)).code == 0


async def test_the_environment_may_be_replaced() -> None:
    assert (await run(["/usr/bin/env"], env={"A": "b"})).stdout == b"A=b\n"


async def test_a_program_may_run_in_another_directory(tmp_path: Path) -> None:
    assert (await run(["pwd"], cwd=tmp_path)).stdout.decode() == f"{tmp_path}\n"


async def test_a_signal_is_a_negative_code() -> None:
    assert (await run(["sh", "-c", "kill -TERM $$"])).code == -signal.SIGTERM


async def test_descriptors_are_passed_and_no_others() -> None:
    passed, other = os.pipe()
    try:
        os.set_inheritable(other, True)
        done = await run(["ls", "/proc/self/fd"], pass_fds=[passed])
        listed = set(map(int, done.stdout.split()))
        assert passed in listed
        assert other not in listed
    finally:
        os.close(passed)
        os.close(other)


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"^cannot run no-such-program: .*install"):
        await run(["no-such-program"])


async def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o644)
    for path in (file, tmp_path, file / "below"):
        with pytest.raises(FailedPrecondition, match=rf"^cannot run {path}: "):
            await run([str(path)])


@pytest.mark.parametrize("rest", ["exec sleep 60", "sleep 60 & echo $!; wait"])
async def test_what_takes_too_long_is_killed_with_all_it_started(rest: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with asyncio.timeout(10):
        with pytest.raises(DeadlineExceeded, match=r"^cannot finish sh -c .* after 0\.3 s"):
            await run(["sh", "-c", f"exec >{pids}; echo $$; {rest}"], timeout_s=0.3)
    first, *others = map(int, pids.read_text().split())
    assert not Path(f"/proc/{first}").exists()  # reaped before the caller was told
    for pid in others:
        assert await gone(pid)


@pytest.mark.parametrize("rest", ["exit 0", "exec sleep 60"])
async def test_a_daemon_that_holds_the_output_open_is_not_waited_for_longer(rest: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with asyncio.timeout(10):
        with pytest.raises(DeadlineExceeded):
            await run(["sh", "-c", f"setsid sleep 60 & echo $! >{pids}; {rest}"], timeout_s=0.3)
    daemon = int(pids.read_text())
    os.kill(daemon, signal.SIGKILL)  # its own session: it was not killed with the rest
    assert await gone(daemon)


async def test_what_nobody_waits_for_any_more_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    waiting = asyncio.create_task(run(["sh", "-c", f"echo $$ >{fifo}; exec sleep 60"]))
    pid = int(await asyncio.to_thread(fifo.read_text))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await gone(pid)


async def test_a_failure_says_what_the_program_said() -> None:
    assert (await run(["sh", "-c", "echo chatter; echo broken >&2; exit 1"])).message == "broken"
    assert (await run(["sh", "-c", "echo only this; exit 1"])).message == "only this"
    assert (await run(["sh", "-c", "exit 7"])).message == "exit code 7"


async def test_of_a_flood_the_end_is_kept() -> None:
    done = await run(["sh", "-c", "head -c 20000000 /dev/zero; echo the end"])
    assert len(done.stdout) == 1024 * 1024
    assert done.stdout.endswith(b"the end\n")


async def test_a_long_complaint_is_cut_to_its_end() -> None:
    done = await run(["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo the cause"])
    assert len(done.message) == 2000
    assert done.message.endswith("the cause")


async def test_what_is_started_is_not_spared_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    score = Path("/proc/self/oom_score_adj")
    (tmp_path / "spared").write_text("-999\n")  # which a process without CAP_SYS_RESOURCE cannot be
    monkeypatch.setattr(process, "_OWN_OOM_SCORE", tmp_path / "spared")
    before = score.read_text()
    score.write_text("321")
    try:
        done = await run(["sh", "-c", "read go; cat /proc/self/oom_score_adj"], stdin=b"\n")
    finally:
        score.write_text(before)
    assert done.stdout == b"0\n"


async def test_a_line_is_there_before_its_writer_closes() -> None:
    read_end, write_end = os.pipe()
    try:
        line = asyncio.create_task(read_line(read_end))
        os.write(write_end, b"one ")
        await asyncio.sleep(0)
        os.write(write_end, b"line\n")
        assert await asyncio.wait_for(line, 5) == b"one line\n"
        os.write(write_end, b"part")
        os.close(write_end)
        assert await asyncio.wait_for(read_line(read_end), 5) == b"part"
    finally:
        os.close(read_end)


async def test_a_program_can_be_prepared_before_it_goes_on_and_is_ended_if_that_fails() -> None:
    seen: list[int] = []

    async def prepare(pid: int) -> None:
        seen.append(pid)
        raise Failed("cannot prepare it")

    with pytest.raises(Failed, match="cannot prepare it"):
        await run(["sleep", "600"], started=prepare)
    assert not Path(f"/proc/{seen[0]}").exists()
