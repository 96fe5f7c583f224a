import os
import stat
from pathlib import Path

import pytest

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import Device
from criw_supervisor.oci import JsonObject, devices


def allowed(rules: list[JsonObject], kind: str, major: int, minor: int, access: str) -> bool:
    """What the kernel does with the rules: the last that matches decides."""
    answer = False
    for rule in rules:
        matches = all(
            rule.get(key) in (None, value) for key, value in (("type", kind), ("major", major), ("minor", minor))
        )
        if matches and set(access) <= set(str(rule["access"])):
            answer = bool(rule["allow"])
    return answer


def requested(asked: list[Device]) -> list[JsonObject]:
    found = {device.host_path: devices.look(device.host_path) for device in asked}
    return devices.nodes(asked, found, privileged=False)


def test_a_device_that_vanishes_while_they_are_listed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [*real(path), *([path / "gone"] if path == Path("/dev") else [])])
    found = {node["path"] for node in devices.host_devices()}
    assert "/dev/null" in found
    assert "/dev/gone" not in found


def test_everything_is_denied_but_the_usual_and_what_was_given() -> None:
    fuse: JsonObject = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "access": "rw"}
    rules = devices.rules([fuse], privileged=False)
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert allowed(rules, "c", 1, 3, "rw")  # null
    assert allowed(rules, "c", 136, 77, "rw")  # a terminal
    assert allowed(rules, "c", 10, 229, "rw")
    assert not allowed(rules, "b", 8, 0, "r")  # the host's disk
    assert not allowed(rules, "c", 1, 1, "r")  # the host's memory
    assert allowed(rules, "b", 8, 0, "m")  # a node that cannot be opened
    assert not allowed(devices.rules([], privileged=False), "c", 10, 229, "r")


def test_a_privileged_container_may_use_all() -> None:
    assert devices.rules([], privileged=True) == [{"allow": True, "access": "rwm"}]


def test_a_device_is_given_under_its_name_and_with_its_numbers() -> None:
    null = Path("/dev/null").stat()
    (node,) = requested([Device(host_path="/dev/null", container_path="/dev/nothing", permissions="r")])
    assert node == {
        "path": "/dev/nothing", "type": "c", "major": 1, "minor": 3, "access": "r",
        "fileMode": stat.S_IMODE(null.st_mode), "uid": null.st_uid, "gid": null.st_gid,
    }  # fmt: skip
    assert devices.oci([node]) == [{key: value for key, value in node.items() if key != "access"}]
    (node,) = requested([Device(host_path="/dev/null")])
    assert (node["path"], node["access"]) == ("/dev/null", "rwm")


def test_a_link_is_followed_to_its_device(tmp_path: Path) -> None:
    (tmp_path / "by-id").symlink_to("/dev/zero")
    (node,) = requested([Device(host_path=str(tmp_path / "by-id"), container_path="/dev/z")])
    assert (node["major"], node["minor"]) == (1, 5)


@pytest.mark.root
def test_a_directory_means_the_devices_below_it_and_links_only_repeat_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    os.mknod(tmp_path / "one", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(tmp_path / "sub" / "two", stat.S_IFBLK | 0o600, os.makedev(7, 5))
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(".")
    found = requested([Device(host_path=str(tmp_path), container_path="/dev/d", permissions="rw")])
    assert [(node["path"], node["type"], node["major"], node["minor"]) for node in found] == [
        ("/dev/d/one", "c", 1, 3),
        ("/dev/d/sub/two", "b", 7, 5),
    ]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (Device(host_path="/dev/no-such"), "/dev/no-such: No such file"),
        (Device(host_path="/etc/passwd"), "/etc/passwd: it is not a device"),
        (Device(host_path="/dev/null", permissions="rx"), "permissions rx"),
    ],
)
def test_what_is_no_device_is_refused_by_name(device: Device, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        requested([device])


def test_the_hosts_devices_are_devices_and_not_its_terminals() -> None:
    found = devices.host_devices()
    paths = {str(node["path"]) for node in found}
    assert "/dev/null" in paths
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/")) for path in paths)
    assert all(node["type"] in {"c", "b"} for node in found)
