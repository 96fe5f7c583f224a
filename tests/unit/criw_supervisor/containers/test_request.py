"""What CreateContainer asks for, before the image is known."""

from pathlib import Path

import pytest

from criw.errors import InvalidArgument
from criw_proto.runtime import v1 as cri
from criw_supervisor.containers.request import plan
from criw_supervisor.ledger.container import ContainerName
from criw_supervisor.ledger.places import PodFiles
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.records import PodRecord
from criw_supervisor.ledger.states import PodState

METADATA = cri.ContainerMetadata(name="main", attempt=2)
IMAGE = cri.ImageSpec(image="busybox")


def pod(log_directory: str = "", *, privileged: bool = False) -> Pod:
    security = cri.LinuxSandboxSecurityContext(privileged=privileged)
    linux = cri.LinuxPodSandboxConfig(security_context=security)
    config = cri.PodSandboxConfig(log_directory=log_directory, linux=linux)
    record = PodRecord(
        id="p", config=bytes(config), runtime_handler="", runtime="runc", state=PodState.READY, created_at_ns=1,
        hostname="web", netns="", ips=(), cgroup="/criw/p", owned=(),
    )  # fmt: skip
    return Pod(record, PodFiles(Path("/pods/p")))


def config(**fields: object) -> cri.ContainerConfig:
    made = cri.ContainerConfig(metadata=METADATA, image=IMAGE)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_plan_has_what_is_needed_of_the_request() -> None:
    asked = config(tty=True, stdin=True, stdin_once=True, stop_signal=cri.Signal.SIGUSR1)
    made = plan("c", asked, pod())
    assert (made.id, made.name, made.image) == ("c", ContainerName("main", 2), "busybox")
    assert (made.terminal, made.stdin, made.stdin_once, made.stop_signal) == (True, True, True, 10)
    assert cri.ContainerConfig.parse(made.config) == asked


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        (None, "config"),
        (cri.ContainerConfig(image=IMAGE), r"config\.metadata\.name"),
        (cri.ContainerConfig(metadata=cri.ContainerMetadata(), image=IMAGE), r"config\.metadata\.name"),
        (cri.ContainerConfig(metadata=METADATA), r"config\.image\.image"),
        (cri.ContainerConfig(metadata=METADATA, image=cri.ImageSpec()), r"config\.image\.image"),
    ],
)
def test_what_is_missing_is_named(asked: cri.ContainerConfig | None, missing: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{missing} is missing"):
        plan("c", asked, pod())


def test_requests_are_the_same_in_whatever_order_their_maps_came() -> None:
    one, other = config(labels={"a": "1", "b": "2"}), config(labels={"b": "2", "a": "1"})
    assert plan("c", one, pod()).digest == plan("d", other, pod()).digest
    assert plan("c", one, pod()).digest != plan("c", config(labels={"a": "2", "b": "1"}), pod()).digest


def test_a_privileged_container_needs_a_privileged_sandbox() -> None:
    security = cri.LinuxContainerSecurityContext(privileged=True)
    asked = config(linux=cri.LinuxContainerConfig(security_context=security))
    assert plan("c", asked, pod(privileged=True)).parts.privileged
    with pytest.raises(InvalidArgument, match="it is privileged and its pod sandbox is not"):
        plan("c", asked, pod())


@pytest.mark.parametrize(
    ("directory", "path", "words"),
    [
        ("/logs/pod", ".", r"log_path \. names a directory"),
        ("/logs/pod/", "./", "names a directory"),
        ("/logs/pod", "a:b.log", "no colon"),
        ("/logs/a:b", "main.log", "no colon"),
        ("/logs/pod", "a\0b", "no colon or NUL"),
    ],
)
def test_a_log_that_would_land_elsewhere_is_refused(directory: str, path: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        plan("c", config(log_path=path), pod(directory))


@pytest.mark.parametrize("path", ["/etc/cron.d/x", "../x.log", "a/../../x.log"])
def test_a_log_outside_the_pods_directory_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match="must be relative to the pod's log_directory"):
        plan("c", config(log_path=path), pod("/logs/pod"))


@pytest.mark.parametrize(
    ("directory", "path", "expected"),
    [
        ("/logs/pod", "main/0.log", "/logs/pod/main/0.log"),
        ("/logs/pod/", "main.log", "/logs/pod/main.log"),
        ("/logs/pod", "", ""),
        ("", "main.log", ""),
    ],
)
def test_where_the_log_goes(directory: str, path: str, expected: str) -> None:
    assert plan("c", config(log_path=path), pod(directory)).log_path == expected
