"""Any request makes a plan and an OCI document, or is refused as one that cannot be carried out, and soon."""

import dataclasses
import functools
import json
import os
import time
import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Final, TypeVar

import betterproto2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criw.errors import Failed, FailedPrecondition, InvalidArgument
from criw.ids import new_id
from criw_proto.runtime import v1 as cri
from criw_supervisor.containers.request import plan as container_plan
from criw_supervisor.ledger.places import PodFiles
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.records import PodRecord
from criw_supervisor.ledger.states import PodState
from criw_supervisor.oci import devices, mounts
from criw_supervisor.oci.capabilities import ALL
from criw_supervisor.oci.document import Host, Outside, PodView, build
from criw_supervisor.oci.image import parse_image_config
from criw_supervisor.oci.resources import OomScore
from criw_supervisor.pods.request import plan as pod_plan
from criw_supervisor.runtimes.bundle import encoded

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # the old fields are meant
FUZZED: Final = int(os.environ.get("CRIW_FUZZED_REQUESTS", "200"))  # more by hand
REFUSALS: Final = (InvalidArgument, FailedPrecondition, Failed)  # the last: of an image whose configuration is none
M = TypeVar("M", bound=betterproto2.Message)

WORDS = st.sampled_from(
    [
        *(
            "/",
            "//",
            ".",
            "..",
            "/..",
            "a/../..",
            "/dev",
            "/dev/null",
            "/proc/self",
            "/etc/hosts",
            "/etc/passwd",
            "/sys",
        ),
        *("", " ", "\0", "\n", "=", "=x", "PATH=", ":", "a:b", "é", "\ufffd", "x" * 300, "/" + "d/" * 200, "%s", "{}"),
        *("ALL", "CAP_SYS_ADMIN", "NET_RAW", "localhost/x", "runtime/default", "unconfined", "/criw/x", "a.slice"),
        *("net.ipv4.ip_forward", "kernel.shm_rmid_forced", "fs.mqueue.x", "-1", "0", "65536", "1.2.3.4", "::1", "rwm"),
    ]
)
TEXT: Final = WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS: Final = st.sampled_from([0, 1, -1, 2, 1000, 65535, 65536, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)])


def of_type(kind: Any, depth: int) -> st.SearchStrategy[Any]:
    """Values for a field of a message."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return st.lists(of_type(inner[0], depth), max_size=3)
    if origin is dict:
        return st.dictionaries(of_type(inner[0], depth), of_type(inner[1], depth), max_size=2)
    if origin in {UnionType, typing.Union}:
        (some,) = (one for one in inner if one is not type(None))
        return st.none() | of_type(some, depth)
    if issubclass(kind, betterproto2.Message):
        return st.just(kind()) if depth == 0 else messages(kind, depth - 1)
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    simple = {str: TEXT, bool: st.booleans(), int: NUMBERS, float: st.floats(), bytes: st.binary(max_size=8)}
    return simple[kind]


@functools.cache
def messages(kind: type[M], depth: int = 5) -> st.SearchStrategy[M]:
    """Messages as they come over the wire, with some of their fields set."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: of_type(hints[field.name], depth) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # it is one

    def made(values: dict[str, Any]) -> M:
        for name in tuple(values):
            try:
                bytes(kind(**{name: values[name]}))
            except (ValueError, OverflowError):  # a number that is none of the field's
                del values[name]
        return kind.parse(bytes(kind(**values)))

    return st.fixed_dictionaries({}, optional=fields).map(made)


def named(config: cri.ContainerConfig) -> cri.ContainerConfig:
    """Else most of what is drawn is refused for want of a name."""
    config.metadata, config.image = cri.ContainerMetadata(name="main"), cri.ImageSpec(image="busybox")
    return config


def likely(config: cri.ContainerConfig) -> cri.ContainerConfig:
    """Without what is always refused."""
    config.CDI_devices = []
    config.command = config.command or ["sh"]
    for mount in config.mounts:
        mount.uid_mappings, mount.gid_mappings, mount.image = [], [], None
        mount.container_path, mount.host_path = f"/{mount.container_path}x", f"/{mount.host_path}"
    for device in config.devices:
        device.container_path, device.permissions = f"/{device.container_path}x", "rwm"
    for pair in config.envs:
        pair.key = f"K{pair.key}"
    return config


def pod_of(config: cri.PodSandboxConfig) -> Pod:
    record = PodRecord(
        id="p", config=bytes(config), runtime_handler="", runtime="runc", state=PodState.READY, created_at_ns=1,
        hostname="web", netns="", ips=(), cgroup="/criw/p", owned=(),
    )  # fmt: skip
    return Pod(record, PodFiles(Path("/pods/p")))


REQUESTS: Final = messages(cri.ContainerConfig).map(named)
VIEW: Final = PodView("web", {"network": "/net", "ipc": "/ipc"}, host_pid=False, files={"/etc/hosts": Path("/pods/h")})
PRIVILEGED: Final = cri.PodSandboxConfig(
    linux=cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(privileged=True))
)


def document(rootfs: Path, config: cri.ContainerConfig, image: bytes, *, cgroup_v2: bool) -> bytes:
    """What the runtime gets for a request; what the request names of this host is taken as if it were there."""
    asked = container_plan("c", config, pod_of(PRIVILEGED))
    host = Host(cgroup_v2=cgroup_v2, swap=False, held=frozenset(ALL), oom_score=OomScore(may_lower=False), pids_limit=0)
    outside = Outside(
        {one.host_path: mounts.Source("/nowhere") for one in asked.parts.mounts},
        {one.host_path: devices.look("/dev/null") for one in asked.parts.devices},
    )
    made = build(
        asked.parts, image=parse_image_config(image, "i"), rootfs=rootfs, cgroup="/criw/p/c", pod=VIEW, host=host,
        outside=outside, target=None,
    )  # fmt: skip
    return encoded(made.document)


JSON: Final = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT, lambda one: st.lists(one, max_size=3), max_leaves=5
)
KEYS: Final = ("Entrypoint", "Cmd", "Env", "User", "WorkingDir", "Volumes", "StopSignal")
LISTS: Final = st.lists(TEXT, max_size=3)
IMAGES: Final = st.fixed_dictionaries(
    {}, optional={key: LISTS | LISTS | JSON | TEXT | st.dictionaries(TEXT, st.just({}), max_size=3) for key in KEYS}
).map(lambda config: json.dumps({"config": config}).encode())


@settings(max_examples=FUZZED, deadline=None, suppress_health_check=list(HealthCheck))
@given(REQUESTS | REQUESTS.map(likely), IMAGES, st.booleans())
def test_any_container_gets_a_document_or_is_refused(
    tmp_path: Path, config: cri.ContainerConfig, image: bytes, cgroup_v2: bool
) -> None:
    try:
        made = document(tmp_path, config, image, cgroup_v2=cgroup_v2)
    except REFUSALS as err:
        assert str(err).startswith("cannot ")
    else:
        assert json.loads(made)["process"]["args"]


@settings(max_examples=FUZZED, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages(cri.PodSandboxConfig), TEXT)
def test_any_pod_gets_a_plan_or_is_refused(config: cri.PodSandboxConfig, handler: str) -> None:
    config.metadata = config.metadata or cri.PodSandboxMetadata(name="web", namespace="default", uid="u")
    try:
        pod_plan(new_id(), config, handler, cgroup_parent="/criw")
    except InvalidArgument as err:
        assert str(err).startswith("cannot ")


@settings(max_examples=FUZZED, deadline=None)
@given(messages(cri.ContainerConfig), messages(cri.PodSandboxConfig))
def test_any_container_in_any_pod_gets_a_plan_or_is_refused(
    config: cri.ContainerConfig, pod: cri.PodSandboxConfig
) -> None:
    try:
        container_plan("c", config, pod_of(pod))
    except (InvalidArgument, FailedPrecondition) as err:
        assert str(err).startswith("cannot ")


def many(**repeated: Any) -> cri.ContainerConfig:
    return named(cri.ContainerConfig(command=["sh"], **repeated))


def secured(**fields: Any) -> cri.ContainerConfig:
    security = cri.LinuxContainerSecurityContext(namespace_options=cri.NamespaceOption(), **fields)
    return named(cri.ContainerConfig(command=["sh"], linux=cri.LinuxContainerConfig(security_context=security)))


def deep(number: int) -> str:
    return "/" + "/".join(["d"] * number)


GROWING: Final[dict[str, Callable[[int], cri.ContainerConfig]]] = {
    "mounts": lambda n: many(mounts=[cri.Mount(container_path=f"/v/{i}", host_path=f"/h/{i}") for i in range(n)]),
    "nested mounts": lambda n: many(
        mounts=[cri.Mount(container_path=deep(i % 20 + 1) + str(i), host_path="/h") for i in range(n)]
    ),
    "deep mount": lambda n: many(mounts=[cri.Mount(container_path=deep(2 * n), host_path="/h")]),
    "devices": lambda n: many(
        devices=[cri.Device(container_path=f"/dev/x{i}", host_path="/dev/null", permissions="r") for i in range(n)]
    ),
    "variables": lambda n: many(envs=[cri.KeyValue(key=f"K{i}", value=b"v") for i in range(n)]),
    "arguments": lambda n: many(args=["a"] * n),
    "groups": lambda n: secured(supplemental_groups=list(range(1, n + 1))),
    "masked paths": lambda n: secured(masked_paths=[f"/m/{i}" for i in range(n)]),
    "capabilities": lambda n: secured(capabilities=cri.Capability(add_capabilities=["NET_ADMIN"] * n)),
}
SMALL: Final = 250


@pytest.mark.parametrize("what", GROWING)
def test_time_grows_as_the_request_does(tmp_path: Path, what: str) -> None:
    image = b'{"config": {}}'

    def seconds(number: int) -> float:
        config, best = GROWING[what](number), float("inf")
        for _ in range(3):
            begun = time.process_time()
            document(tmp_path, config, image, cgroup_v2=False)
            best = min(best, time.process_time() - begun)
        return best

    assert seconds(4 * SMALL) < 8 * seconds(SMALL) + 0.02  # linear would be four times, quadratic sixteen
