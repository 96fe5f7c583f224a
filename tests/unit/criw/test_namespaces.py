from pathlib import Path

import pytest

from criw import kernel
from criw.mountinfo import mounts_below
from criw.namespaces import is_pinned, pin, unpin

KINDS = {"net": kernel.CLONE_NEWNET, "uts": kernel.CLONE_NEWUTS, "ipc": kernel.CLONE_NEWIPC}


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
async def test_a_pinned_namespace_outlives_its_thread(kind: str, tmp_path: Path) -> None:
    handle = tmp_path / "pin"

    def make() -> int:
        kernel.unshare(KINDS[kind])
        pin(kind, handle)
        return Path(f"/proc/thread-self/ns/{kind}").stat().st_ino

    made = await kernel.in_fresh_thread(make)
    try:
        assert is_pinned(handle)
        assert handle.stat().st_ino == made != Path(f"/proc/self/ns/{kind}").stat().st_ino
    finally:
        unpin(handle)
    assert (is_pinned(handle), handle.exists(), mounts_below(tmp_path)) == (False, False, [])


def test_a_file_without_a_namespace_is_no_pin(tmp_path: Path) -> None:
    assert not is_pinned(tmp_path / "pin")
    (tmp_path / "pin").touch()
    assert not is_pinned(tmp_path / "pin")


@pytest.mark.root
def test_another_mount_is_no_pin(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "pin").touch()
    kernel.mount(tmp_path / "file", tmp_path / "pin", flags=kernel.MS_BIND)
    try:
        assert not is_pinned(tmp_path / "pin")
    finally:
        unpin(tmp_path / "pin")


@pytest.mark.root
def test_unpinning_again_is_a_success(tmp_path: Path) -> None:
    unpin(tmp_path / "pin")
    (tmp_path / "pin").touch()  # as a reboot leaves it
    unpin(tmp_path / "pin")
    assert not (tmp_path / "pin").exists()
