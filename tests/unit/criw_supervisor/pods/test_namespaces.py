import os
import socket
from functools import partial
from pathlib import Path

import pytest

from criw import kernel
from criw.errors import InvalidArgument
from criw.mountinfo import mounts_below
from criw_supervisor.ledger.places import PodFiles
from criw_supervisor.pods import namespaces
from criw_supervisor.pods.namespaces import NamespacesPlan


@pytest.fixture
def files(tmp_path: Path) -> PodFiles:
    made = PodFiles(tmp_path / "pod")
    made.directory.mkdir()
    return made


async def create(
    files: PodFiles, *, sysctls: dict[str, str] | None = None, own_uts: bool = True, own_ipc: bool = True
) -> None:
    files.directory.rmdir()
    plan = NamespacesPlan(own_uts, own_ipc, "in-pod", sysctls or {})
    await kernel.in_fresh_thread(partial(namespaces.create, files, plan))


def inside(files: PodFiles, kind: Path, path: str) -> str:
    """A sysctl as the pod's namespace has it."""
    with kind.open() as handle:
        kernel.setns(handle.fileno(), 0)
    return Path(path).read_text().strip()


@pytest.mark.root
async def test_a_pod_has_its_own_names_and_shared_memory_and_gives_them_back(files: PodFiles) -> None:
    await create(files, sysctls={"kernel.msgmax": "12345", "kernel.domainname": "example.org"})
    try:
        read = partial(inside, files, files.uts)
        assert await kernel.in_fresh_thread(partial(read, "/proc/sys/kernel/hostname")) == "in-pod"
        assert await kernel.in_fresh_thread(partial(read, "/proc/sys/kernel/domainname")) == "example.org"
        message = await kernel.in_fresh_thread(partial(inside, files, files.ipc, "/proc/sys/kernel/msgmax"))
        assert message == "12345"
        assert socket.gethostname() != "in-pod"
        assert os.statvfs(files.shm).f_bsize * os.statvfs(files.shm).f_blocks == 64 * 1024 * 1024
        assert files.shm.stat().st_mode & 0o7777 == 0o1777
        assert files.namespaces() == {"ipc": str(files.ipc), "uts": str(files.uts)}
        assert files.mounts()["/dev/shm"] == files.shm
        assert namespaces.are_whole(files, own_uts=True, own_ipc=True)
    finally:
        for _ in range(2):
            namespaces.unpin(files)
        assert mounts_below(files.directory) == []
        assert files.directory.is_dir()
        assert not namespaces.are_whole(files, own_uts=True, own_ipc=True)
        for _ in range(2):
            namespaces.remove(files)
    assert not files.directory.exists()


@pytest.mark.root
async def test_a_pod_with_the_hosts_namespaces_makes_none(files: PodFiles) -> None:
    await create(files, own_uts=False, own_ipc=False)
    assert files.namespaces() == {}
    assert mounts_below(files.directory) == []
    assert files.mounts()["/dev/shm"] == Path("/dev/shm")
    namespaces.remove(files)


@pytest.mark.root
@pytest.mark.parametrize(("name", "value"), [("kernel.shm_no_such", "1"), ("kernel.msgmax", "nonsense")])
async def test_a_sysctl_the_kernel_refuses_is_told_and_what_was_made_is_removed(
    files: PodFiles, name: str, value: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"cannot set sysctl {name}"):
        await create(files, sysctls={name: value})
    namespaces.remove(files)
    assert mounts_below(files.directory) == []
    assert not files.directory.exists()
