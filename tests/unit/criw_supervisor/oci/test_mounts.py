import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from criw import kernel
from criw.errors import Failed, InvalidArgument
from criw_proto.runtime.v1 import IdMapping, ImageSpec, Mount, MountPropagation
from criw_supervisor.oci import JsonObject, mounts

PRIVATE = MountPropagation.PROPAGATION_PRIVATE
SLAVE = MountPropagation.PROPAGATION_HOST_TO_CONTAINER
SHARED = MountPropagation.PROPAGATION_BIDIRECTIONAL


def destinations(found: list[JsonObject]) -> list[object]:
    return [mount["destination"] for mount in found]


def options(mount: JsonObject) -> list[str]:
    found = mount["options"]
    assert isinstance(found, list)
    return found


# --- kernel file systems


def test_sys_and_cgroups_are_read_only_unless_privileged() -> None:
    for privileged, access in ((False, "ro"), (True, "rw")):
        made = mounts.kernel_mounts(privileged=privileged, own_ipc=True, cgroup_v2=False)
        by_path = {mount["destination"]: mount for mount in made}
        assert access in options(by_path["/sys"])
        assert access in options(by_path["/sys/fs/cgroup"])
        assert {"nosuid", "nodev", "noexec"} <= set(options(by_path["/proc"]))


def test_the_cgroup_file_system_is_the_hosts_version() -> None:
    for v2, kind in ((False, "cgroup"), (True, "cgroup2")):
        made = mounts.kernel_mounts(privileged=False, own_ipc=True, cgroup_v2=v2)
        assert [mount["type"] for mount in made if mount["destination"] == "/sys/fs/cgroup"] == [kind]


def test_message_queues_are_the_pods_or_the_hosts() -> None:
    own = mounts.kernel_mounts(privileged=False, own_ipc=True, cgroup_v2=False)
    assert [mount["type"] for mount in own if mount["destination"] == "/dev/mqueue"] == ["mqueue"]
    hosts = mounts.kernel_mounts(privileged=False, own_ipc=False, cgroup_v2=False)
    expected = ["bind"] if Path("/dev/mqueue").exists() else []
    assert [mount["type"] for mount in hosts if mount["destination"] == "/dev/mqueue"] == expected


# --- the pod's files

FILES = {"/etc/hosts": Path("/run/pod/hosts"), "/dev/shm": Path("/run/pod/shm")}


def test_the_pods_files_are_there_but_where_the_user_mounts() -> None:
    assert destinations(mounts.pod_mounts(FILES, set(), readonly=False)) == ["/etc/hosts", "/dev/shm"]
    assert destinations(mounts.pod_mounts(FILES, {"/etc/hosts"}, readonly=False)) == ["/dev/shm"]


def test_with_a_read_only_root_the_files_are_so_but_shared_memory_is_not() -> None:
    hosts, shm = mounts.pod_mounts(FILES, set(), readonly=True)
    assert "ro" in options(hosts)
    assert "rw" in options(shm)
    assert {"nosuid", "nodev", "noexec"} <= set(options(shm))


# --- the order


def test_parents_come_before_children_and_users_replace_kernel_file_systems(tmp_path: Path) -> None:
    kernels = mounts.kernel_mounts(privileged=True, own_ipc=True, cgroup_v2=False)
    user = mounts.user_mounts(
        [
            Mount(container_path="/data/below", host_path=str(tmp_path)),
            Mount(container_path="/etc", host_path=str(tmp_path)),
            Mount(container_path="/data", host_path=str(tmp_path)),
            Mount(container_path="/dev/", host_path=str(tmp_path)),
        ]
    )
    ordered = mounts.in_order(kernels, mounts.pod_mounts(FILES, set(), readonly=False), user)
    paths = destinations(ordered)
    assert paths.index("/etc") < paths.index("/etc/hosts")
    assert paths.index("/data") < paths.index("/data/below")
    assert paths.count("/dev") == 1
    assert paths.index("/dev") < paths.index("/dev/shm")
    assert next(mount for mount in ordered if mount["destination"] == "/dev")["type"] == "bind"


def test_mounts_on_one_path_keep_their_order() -> None:
    first: JsonObject = {"destination": "/x", "options": ["1"]}
    second: JsonObject = {"destination": "/x", "options": ["2"]}
    assert mounts.in_order([], [], [first, second]) == [first, second]


# --- the user's mounts


def test_a_plain_mount(tmp_path: Path) -> None:
    (made,) = mounts.user_mounts([Mount(container_path="/data", host_path=str(tmp_path))])
    assert made == {
        "destination": "/data", "type": "bind", "source": str(tmp_path), "options": ["rbind", "rprivate", "rw"],
    }  # fmt: skip
    (made,) = mounts.user_mounts([Mount(container_path="/data", host_path=str(tmp_path), readonly=True)])
    assert options(made)[-1] == "ro"


def test_a_linked_source_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (made,) = mounts.user_mounts([Mount(container_path="/data", host_path=str(tmp_path / "link"))])
    assert made["source"] == str(tmp_path / "real")


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (Mount(container_path="data", host_path="/"), "cannot mount on data: container_path must be absolute"),
        (Mount(container_path="", host_path="/"), r"cannot mount on \(nothing\)"),
        (Mount(container_path="/d", host_path="relative"), "cannot mount relative on /d: host_path must be absolute"),
        (Mount(container_path="/d", host_path=""), r"cannot mount \(nothing\) on /d"),
        (Mount(container_path="/d", host_path="/a\0b"), "host_path must be absolute"),
        (Mount(container_path="/d", host_path="/no/such/dir"), "/no/such/dir on /d: No such file.*create it first"),
        (Mount(container_path="/d", host_path="/etc/passwd/x"), "Not a directory"),
        (Mount(container_path="/d", host_path="/", recursive_read_only=True), "recursive_read_only is not supported"),
        (Mount(container_path="/d", host_path="/", uid_mappings=[IdMapping(length=1)]), "id-mapped"),
        (Mount(container_path="/d", host_path="/", mount_options=["noexec"]), "mount_options"),
        (Mount(container_path="/d", host_path="/", propagation=MountPropagation(9)), "unknown propagation"),
    ],
)
def test_a_mount_that_cannot_be_is_refused_by_name(mount: Mount, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        mounts.user_mounts([mount])


def test_an_image_volume_is_refused_as_the_kubelet_reads_it() -> None:
    with pytest.raises(Failed, match=r"^ImageVolumeMountFailed: .*busybox on /d"):
        mounts.user_mounts([Mount(container_path="/d", image=ImageSpec(image="busybox"))])


# --- propagation


@pytest.mark.parametrize(
    ("kinds", "root"), [([], ""), ([PRIVATE], ""), ([PRIVATE, SLAVE], "rslave"), ([SLAVE, SHARED], "rshared")]
)
def test_the_root_lets_the_propagation_of_its_mounts_through(kinds: list[MountPropagation], root: str) -> None:
    assert mounts.propagation_of_root([Mount(propagation=kind) for kind in kinds]) == root


@contextlib.contextmanager
def mounted(directory: Path, flags: int) -> Iterator[Path]:
    """A file system of its own at a directory with a name that mountinfo must escape."""
    point = directory / "a name\\with ŵ"
    point.mkdir()
    kernel.mount("tmpfs", point, fstype="tmpfs")
    try:
        kernel.mount("none", point, flags=flags)
        (point / "below").mkdir()
        yield point
    finally:
        kernel.umount2(point, flags=kernel.MNT_DETACH)


@pytest.mark.root
@pytest.mark.parametrize("below", ["", "below"])
def test_propagation_is_given_where_the_source_has_it(tmp_path: Path, below: str) -> None:
    def asked(point: Path, kind: MountPropagation) -> str:
        (made,) = mounts.user_mounts([Mount(container_path="/d", host_path=os.fspath(point / below), propagation=kind)])
        return options(made)[1]

    with mounted(tmp_path, kernel.MS_SHARED) as point:
        assert asked(point, SHARED) == "rshared"
        assert asked(point, SLAVE) == "rslave"
        assert asked(point, PRIVATE) == "rprivate"
        kernel.mount("none", point, flags=kernel.MS_SLAVE)
        assert asked(point, PRIVATE) == "rprivate"


@pytest.mark.root
@pytest.mark.parametrize(("kind", "words"), [(SHARED, "bidirectional"), (SLAVE, "from the host")])
def test_propagation_of_a_private_source_is_refused_with_the_remedy(
    tmp_path: Path, kind: MountPropagation, words: str
) -> None:
    with mounted(tmp_path, kernel.MS_PRIVATE) as point:
        mount = Mount(container_path="/d", host_path=os.fspath(point), propagation=kind)
        with pytest.raises(InvalidArgument, match=f"{words}.*make-rshared"):
            mounts.user_mounts([mount])
