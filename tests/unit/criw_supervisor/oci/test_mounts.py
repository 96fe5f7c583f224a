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


def user_mounts(asked: list[Mount]) -> list[JsonObject]:
    for mount in asked:
        mounts.check(mount)
    found = {one.host_path: mounts.look(one.host_path, propagation=mounts.needs_propagation(one)) for one in asked}
    return mounts.user_mounts(asked, found)


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
    user = user_mounts(
        [
            Mount(container_path="/data/below", host_path=str(tmp_path)),
            Mount(container_path="/etc", host_path=str(tmp_path)),
            Mount(container_path="/data", host_path=str(tmp_path)),
            Mount(container_path="/dev/", host_path=str(tmp_path)),
        ]
    )
    ordered, _ = mounts.in_order(kernels, mounts.pod_mounts(FILES, set(), readonly=False), user, tmp_path)
    paths = destinations(ordered)
    assert paths.index("/etc") < paths.index("/etc/hosts")
    assert paths.index("/data") < paths.index("/data/below")
    assert paths.count("/dev") == 1
    assert paths.index("/dev") < paths.index("/dev/shm")
    assert next(mount for mount in ordered if mount["destination"] == "/dev")["type"] == "bind"


def test_mounts_on_one_path_keep_their_order(tmp_path: Path) -> None:
    first: JsonObject = {"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["1"]}
    second: JsonObject = {"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["2"]}
    assert mounts.in_order([], [], [first, second], tmp_path)[0] == [first, second]


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """As in Debian's, Ubuntu's and Alpine's images."""
    root = tmp_path / "rootfs"
    for name in ("var", "run", "etc"):
        (root / name).mkdir(parents=True)
    (root / "var/run").symlink_to("/run")
    (root / "etc/localtime").symlink_to("../usr/share/zoneinfo/Etc/UTC")
    (root / "etc/resolv.conf").symlink_to("/run/resolve/../resolve/stub.conf")
    return root


TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


@pytest.mark.parametrize("volume_on_run", [False, True])
def test_a_pods_token_is_where_the_images_link_leads(rootfs: Path, tmp_path: Path, volume_on_run: bool) -> None:
    asked = [Mount(container_path=TOKEN, host_path=str(tmp_path))]
    if volume_on_run:
        (tmp_path / "volume").mkdir()
        asked.append(Mount(container_path="/run", host_path=str(tmp_path / "volume")))
    ordered, _ = mounts.in_order([], [], user_mounts(asked), rootfs)
    expected = ["/run/secrets/kubernetes.io/serviceaccount"]
    assert destinations(ordered) == (["/run", *expected] if volume_on_run else expected)


def test_linked_files_are_mounted_where_their_links_lead(rootfs: Path, tmp_path: Path) -> None:
    files = {"/etc/resolv.conf": tmp_path / "resolv.conf"}
    user = user_mounts([Mount(container_path="/etc/localtime", host_path="/etc/passwd")])
    ordered, _ = mounts.in_order([], mounts.pod_mounts(files, set(), readonly=False), user, rootfs)
    assert destinations(ordered) == ["/run/resolve/stub.conf", "/usr/share/zoneinfo/Etc/UTC"]


def test_a_link_of_a_volume_leads_no_mount_out_of_the_container(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/out").symlink_to("../../../../../../root")
    user = user_mounts(
        [
            Mount(container_path="/a", host_path="/usr"),  # leads below the volume, which comes after it in the request
            Mount(container_path="/data", host_path=str(tmp_path / "volume")),
            Mount(container_path="/data/out/x", host_path="/usr"),
        ]
    )
    (rootfs / "a").symlink_to("data/out/y")
    ordered, _ = mounts.in_order([], [], user, rootfs)
    assert sorted(map(str, destinations(ordered))) == ["/data", "/root/x", "/root/y"]


# --- volumes of the image


def test_the_volumes_of_an_image_are_directories_of_the_container(rootfs: Path, tmp_path: Path) -> None:
    _, tree = mounts.in_order([], [], user_mounts([Mount(container_path="/given", host_path=str(tmp_path))]), rootfs)
    volumes = ["/data", "/var/run/deep/er", "relative", "/given/x", "/"]
    assert mounts.of_volumes(volumes, tree, readonly_root=False) == []
    for made in ("data", "run/deep/er", "relative"):
        assert (rootfs / made).stat().st_mode & 0o7777 == 0o755
    assert not (tmp_path / "x").exists()  # it is the user's
    bound = mounts.of_volumes(volumes, tree, readonly_root=True)
    assert destinations(bound) == ["/data", "/run/deep/er", "/relative"]
    assert (bound[0]["source"], options(bound[0])[-1]) == (str(rootfs / "data"), "rw")


def test_a_volume_that_is_a_file_is_refused(rootfs: Path) -> None:
    (rootfs / "data").write_text("")
    _, tree = mounts.in_order([], [], [], rootfs)
    with pytest.raises(InvalidArgument, match="cannot make volume /data of the image"):
        mounts.of_volumes(["/data"], tree, readonly_root=False)


# --- the user's mounts


def test_a_plain_mount(tmp_path: Path) -> None:
    (made,) = user_mounts([Mount(container_path="/data", host_path=str(tmp_path))])
    assert made == {
        "destination": "/data", "type": "bind", "source": str(tmp_path), "options": ["rbind", "rprivate", "rw"],
    }  # fmt: skip
    (made,) = user_mounts([Mount(container_path="/data", host_path=str(tmp_path), readonly=True)])
    assert options(made)[-1] == "ro"


def test_a_linked_source_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (made,) = user_mounts([Mount(container_path="/data", host_path=str(tmp_path / "link"))])
    assert made["source"] == str(tmp_path / "real")


def test_a_source_that_is_not_there_is_made_a_directory(tmp_path: Path) -> None:
    for _ in range(2):
        (made,) = user_mounts([Mount(container_path="/data", host_path=str(tmp_path / "not/yet"))])
        assert made["source"] == str(tmp_path / "not/yet")
    assert (tmp_path / "not/yet").stat().st_mode & 0o777 == 0o755
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(InvalidArgument, match="dangling: File exists"):
        user_mounts([Mount(container_path="/data", host_path=str(tmp_path / "dangling"))])


def test_the_mount_table_is_read_only_for_mounts_that_propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> None:
        raise AssertionError(f"the table was read for {path}")

    monkeypatch.setattr(mounts, "mount_of", read)
    assert user_mounts([Mount(container_path="/data", host_path="/usr")])
    with pytest.raises(AssertionError):
        user_mounts([Mount(container_path="/data", host_path="/usr", propagation=SLAVE)])


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (Mount(container_path="data", host_path="/"), "cannot mount on data: container_path must be absolute"),
        (Mount(container_path="", host_path="/"), r"cannot mount on \(nothing\)"),
        (Mount(container_path="/d", host_path="relative"), "cannot mount relative on /d: host_path must be absolute"),
        (Mount(container_path="/d", host_path=""), r"cannot mount \(nothing\) on /d"),
        (Mount(container_path="/d", host_path="/a\0b"), "host_path must be absolute"),
        (Mount(container_path="/d", host_path="/etc/passwd/x"), "cannot mount /etc/passwd/x: Not a directory"),
        (Mount(container_path="/d", host_path="/", recursive_read_only=True), "recursive_read_only is not supported"),
        (Mount(container_path="/d", host_path="/", uid_mappings=[IdMapping(length=1)]), "id-mapped"),
        (Mount(container_path="/d", host_path="/", mount_options=["noexec"]), "mount_options"),
        (Mount(container_path="/d", host_path="/", propagation=MountPropagation(9)), "unknown propagation"),
    ],
)
def test_a_mount_that_cannot_be_is_refused_by_name(mount: Mount, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        user_mounts([mount])


def test_an_image_volume_is_refused_as_the_kubelet_reads_it() -> None:
    with pytest.raises(Failed, match=r"^ImageVolumeMountFailed: .*busybox on /d"):
        user_mounts([Mount(container_path="/d", image=ImageSpec(image="busybox"))])


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
        (made,) = user_mounts([Mount(container_path="/d", host_path=os.fspath(point / below), propagation=kind)])
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
            user_mounts([mount])
