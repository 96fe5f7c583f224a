"""Cgroups as directories of the test's own, and real ones where only the kernel can answer."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.errors import InvalidArgument, Unavailable
from criw_supervisor.cgroups import hierarchies as cgroups
from criw_supervisor.cgroups import killing
from criw_supervisor.cgroups.hierarchies import Cgroups, flat_keyed, of_host, parse


def test_files_of_keys_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom_kill 3\nbroken\nnot_a_number max\n")
    assert flat_keyed(tmp_path / "memory.events") == {"low": 0, "oom_kill": 3}
    assert flat_keyed(tmp_path / "no such file") == {}


# --- made-up hierarchies: which there are, and what a cgroup is in each

HYBRID = b"""\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
35 25 0:31 / /elsewhere/memory rw - cgroup cgroup rw,memory
"""
UNIFIED = b"30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_a_hybrid_host_is_version_1() -> None:
    found = parse(HYBRID)
    assert found.version == 1
    assert found.directory("cpuacct", "/criw/p") == Path("/sys/fs/cgroup/cpu,cpuacct/criw/p")
    assert found.directory("memory", "criw") == Path("/sys/fs/cgroup/memory/criw")
    assert found.directory("pids", "/criw") is None
    assert len(found._hierarchies) == 4


def test_a_unified_host_is_version_2() -> None:
    found = parse(UNIFIED)
    assert found.version == 2
    assert found.directory("memory", "/criw") == found.directory("cpuacct", "/criw") == Path("/sys/fs/cgroup/criw")


@pytest.fixture
def plain(tmp_path: Path) -> Cgroups:
    """Two hierarchies that are ordinary directories."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    mountinfo = "".join(
        f"{n} 1 0:{n} / {tmp_path}/{name} rw - cgroup cgroup rw,{c}\n"
        for n, name, c in ((1, "one", "memory"), (2, "two", "pids"))
    )
    return parse(mountinfo.encode(), tmp_path)


def made(cgroups: Cgroups, cgroup: str, *others: str) -> tuple[str, ...]:
    """Make a cgroup, as a pod does; what is its own then."""
    tops = cgroups.tops(cgroup, ours=lambda: others)
    cgroups.create(cgroup)
    return tops


def test_a_cgroup_is_made_in_every_hierarchy_and_removed_from_each(plain: Cgroups, tmp_path: Path) -> None:
    tops = made(plain, "/criw/pod")
    plain.create("/criw/pod")
    assert (tmp_path / "one/criw/pod").is_dir()
    assert (tmp_path / "two/criw/pod").is_dir()
    (tmp_path / "one/criw/other").mkdir()
    assert plain.children("/criw") == {"pod", "other"}
    plain.remove_empty("/criw/pod", tops)
    assert (tmp_path / "one/criw").is_dir()  # another is in it
    assert plain.children("/criw") == {"other"}
    assert not (tmp_path / "two/criw").exists()


def test_a_cgroup_with_something_in_it_stays(plain: Cgroups, tmp_path: Path) -> None:
    tops = made(plain, "/kubepods/pod")
    plain.create("/kubepods/pod/another-pods-container")
    plain.remove_empty("/kubepods/pod", tops)
    assert (tmp_path / "one/kubepods/pod/another-pods-container").is_dir()


def test_what_was_made_for_a_pod_is_removed_in_each_hierarchy_and_nothing_else(plain: Cgroups, tmp_path: Path) -> None:
    (tmp_path / "one/kubepods/pod").mkdir(parents=True)  # the kubelet's, in this hierarchy only
    tops = made(plain, "/kubepods/pod")
    assert tops == (f"{tmp_path}/two/kubepods",)
    plain.remove_empty("/kubepods/pod", tops)
    assert (tmp_path / "one/kubepods/pod").is_dir()
    assert not (tmp_path / "two/kubepods").exists()


def test_the_last_of_those_that_share_a_parent_takes_it_along(plain: Cgroups, tmp_path: Path) -> None:
    first = made(plain, "/shared/one")
    second = made(plain, "/shared/two", *first)
    plain.remove_empty("/shared/one", first)
    assert plain.children("/shared") == {"two"}
    plain.remove_empty("/shared/two", second)
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("cgroup", ["/criw/cgroup.procs", "/criw/cgroup.procs/below"])
def test_a_cgroup_in_place_of_a_file_is_refused(plain: Cgroups, tmp_path: Path, cgroup: str) -> None:
    plain.create("/criw")
    (tmp_path / "one/criw/cgroup.procs").touch()
    with pytest.raises(InvalidArgument, match=r"cannot make cgroup /criw/cgroup\.procs"):
        plain.create(cgroup)


async def test_removing_takes_what_is_below_along_and_may_be_repeated(plain: Cgroups) -> None:
    tops = made(plain, "/criw/pod/container/nested/deep")
    for _ in range(2):
        await plain.remove("/criw/pod/container")
        plain.remove_empty("/criw/pod/container", tops)
    assert plain.children("/") == set()


def test_ooms_are_counted_by_the_kernels_file(plain: Cgroups, tmp_path: Path) -> None:
    plain.create("/criw/c")
    assert plain.oom_kills("/criw/c") == 0
    (tmp_path / "one/criw/c/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert plain.oom_kills("/criw/c") == 2


# --- real ones


@pytest_asyncio.fixture
async def real() -> AsyncIterator[tuple[Cgroups, str]]:
    host = of_host()
    if not host._hierarchies:
        pytest.skip("no cgroups are mounted here")
    name = f"/criw-unit-{secrets.token_hex(3)}"
    host.create(name)
    yield host, name
    await host.kill(name)
    await host.remove(name)


def inside(host: Cgroups, cgroup: str, *argv: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(argv)
    for root in host._hierarchies:
        (root / cgroup.lstrip("/") / "cgroup.procs").write_text(str(process.pid))
    return process


@pytest.mark.root
async def test_killing_ends_all_that_is_in_a_cgroup_and_below(real: tuple[Cgroups, str]) -> None:
    host, name = real
    host.create(f"{name}/below")
    fork = "import os, time\nfor _ in range(5): os.fork()\ntime.sleep(600)"
    processes = [inside(host, name, "sleep", "600"), inside(host, f"{name}/below", sys.executable, "-c", fork)]
    assert {process.pid for process in processes} <= host.processes(name)
    killing = asyncio.create_task(host.kill(name))
    codes = [await asyncio.to_thread(process.wait) for process in processes]
    await killing
    assert codes == [-signal.SIGKILL] * 2
    assert host.processes(name) == set()


@pytest.mark.root
async def test_a_cgroup_that_stays_busy_is_told(real: tuple[Cgroups, str], monkeypatch: pytest.MonkeyPatch) -> None:
    host, name = real
    monkeypatch.setattr(cgroups, "_BUSY_LIMIT_S", 0.05)
    process = inside(host, name, "sleep", "600")
    try:
        with pytest.raises(Unavailable, match=f"cannot remove cgroup .*{name}"):
            await host.remove(name)
    finally:
        process.kill()
        process.wait()


@pytest.mark.root
def test_a_new_cgroup_takes_processes(real: tuple[Cgroups, str]) -> None:
    host, name = real  # a v1 cpuset takes none until it has CPUs and memory nodes
    process = inside(host, name, "sleep", "600")
    assert os.getpgid(process.pid)
    assert process.pid in host.processes(name)
    process.kill()
    process.wait()


def frozen(host: Cgroups, cgroup: str) -> None:
    for directory in host.directories(cgroup):
        killing.freeze(directory)


@pytest.mark.root
@pytest.mark.parametrize("below", ["", "/below"])
async def test_what_is_frozen_is_killed_wherever_it_was_frozen(real: tuple[Cgroups, str], below: str) -> None:
    host, name = real
    host.create(f"{name}/below")
    process = inside(host, f"{name}/below", "sleep", "600")
    frozen(host, f"{name}{below}")
    await host.kill(name)
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.root
def test_a_process_that_was_killed_while_frozen_ends_when_it_is_thawed(real: tuple[Cgroups, str]) -> None:
    host, name = real
    host.create(f"{name}/below")
    process = inside(host, f"{name}/below", "sleep", "600")
    frozen(host, f"{name}/below")
    process.kill()
    host.thaw(name)
    assert process.wait(10) == -signal.SIGKILL


CHAINS = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(36, 1)  # its orphans come to it, and are reaped by the kernel
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    sys.stdin.readline()  # until it is in the cgroup
    for _ in range(8):
        if os.fork() == 0:
            while True:
                try:
                    if os.fork() != 0:
                        os._exit(0)
                except BlockingIOError:  # the limit of processes
                    pass
    os._exit(0)
signal.pause()
"""


@pytest.mark.root
async def test_a_chain_of_forks_does_not_outrun_the_killing(real: tuple[Cgroups, str]) -> None:
    host, name = real
    pids = host.directory("pids", name)
    assert pids is not None
    (pids / "pids.max").write_text("64")
    keeper = subprocess.Popen([sys.executable, "-c", CHAINS], stdin=subprocess.PIPE)
    assert keeper.stdin is not None
    try:
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
        until = time.monotonic() + 10
        while not (first := children.read_text().split()):
            assert time.monotonic() < until
            time.sleep(0.005)
        for directory in host.directories(name):
            (directory / "cgroup.procs").write_text(first[0])
        keeper.stdin.write(b"go\n")
        keeper.stdin.flush()
        while len(host.processes(name)) < 4:
            assert time.monotonic() < until
        await host.kill(name)
        assert host.processes(name) == set()
    finally:
        keeper.kill()
        keeper.communicate()


@pytest.mark.root
def test_a_process_that_is_not_in_the_cgroup_any_more_is_spared(real: tuple[Cgroups, str]) -> None:
    host, name = real
    process = inside(host, name, "sleep", "600")
    elsewhere = subprocess.Popen(["sleep", "600"])
    directory = host.directories(name)[0]
    killing._kill_some(directory, [elsewhere.pid, process.pid])  # the first has got the pid of one that was in it
    assert process.wait(10) == -signal.SIGKILL
    assert elsewhere.poll() is None
    elsewhere.kill()
    elsewhere.wait()


def test_a_process_without_a_name_here_is_not_signalled(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("0\n0\n")  # of a PID namespace that is not below ours: 0 is our own group
    assert killing.members(tmp_path) == set()
    killing.kill_members(tmp_path)
