"""The whole OCI configuration, from requests as the kubelet and others make them."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from criw.errors import FailedPrecondition, Fault, InvalidArgument
from criw_proto.runtime import v1 as cri
from criw_supervisor.oci import devices, mounts
from criw_supervisor.oci.capabilities import ALL, DEFAULT
from criw_supervisor.oci.document import Host, Outside, PodView, build
from criw_supervisor.oci.image import ImageConfig
from criw_supervisor.oci.parts import parts
from criw_supervisor.oci.resources import OomScore

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # the old fields are meant
Security = cri.LinuxContainerSecurityContext
Mode = cri.NamespaceMode
HELD = frozenset(ALL) - {"SYS_RESOURCE"}


def image(**config: object) -> ImageConfig:
    return ImageConfig.model_validate(config)


BUSYBOX = image(Cmd=["sh"], Env=["PATH=/bin", "A=image"])


def host(*, cgroup_v2: bool = False, pids_limit: int = 0) -> Host:
    return Host(cgroup_v2=cgroup_v2, swap=False, held=HELD, oom_score=OomScore(may_lower=True), pids_limit=pids_limit)


def pod(*, host_pid: bool = False, **namespaces: str) -> PodView:
    return PodView(
        hostname="web", namespaces=namespaces or {"network": "/net", "ipc": "/ipc", "uts": "/uts"}, host_pid=host_pid,
        files={"/etc/hosts": Path("/pod/hosts"), "/dev/shm": Path("/pod/shm")},
    )  # fmt: skip


def config(security: Security | None = None, **fields: Any) -> cri.ContainerConfig:
    made = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="main"))
    resources = fields.pop("resources", None)
    if security is not None or resources is not None:
        made.linux = cri.LinuxContainerConfig(security_context=security, resources=resources)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    """The OCI document of a request."""

    def made(
        asked: cri.ContainerConfig | None = None, *, of: ImageConfig = BUSYBOX, inside: PodView | None = None,
        on: Host | None = None, target: str | None = None,
    ) -> Any:  # fmt: skip
        of_request = parts(asked or config())
        outside = Outside(
            {one.host_path: mounts.look(one.host_path, propagation=False) for one in of_request.mounts},
            {one.host_path: devices.look(one.host_path) for one in of_request.devices},
        )
        spec = build(
            of_request, image=of, rootfs=tmp_path, cgroup="/criw/p/c", pod=inside or pod(), host=on or host(),
            outside=outside, target=target,
        )  # fmt: skip
        return json.loads(json.dumps(spec.document))

    return made


Make = Callable[..., Any]


# --- command, environment, directory


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "expected"),
    [
        ([], ["sh"], [], [], ["sh"]),
        (["/app"], ["serve"], [], [], ["/app", "serve"]),
        (["/app"], ["serve"], [], ["--help"], ["/app", "--help"]),
        (["/app"], ["serve"], ["/bin/sh"], [], ["/bin/sh"]),  # the image's command is not used
        (["/app"], ["serve"], ["/bin/sh"], ["-c", "x"], ["/bin/sh", "-c", "x"]),
        ([], [], [], ["/app"], ["/app"]),
    ],
)
def test_the_command(
    make: Make, entrypoint: list[str], cmd: list[str], command: list[str], args: list[str], expected: list[str]
) -> None:
    document = make(config(command=command, args=args), of=image(Entrypoint=entrypoint, Cmd=cmd))
    assert document["process"]["args"] == expected


def test_without_any_command_it_is_refused(make: Make) -> None:
    with pytest.raises(InvalidArgument, match="main: neither the request nor the image names a command"):
        make(of=image())


def test_the_environment(make: Make) -> None:
    asked = config(
        envs=[cri.KeyValue(key=key, value=value) for key, value in (("A", b"mine"), ("B", b"1=2"), ("B", b""))]
    )
    assert make(asked, of=BUSYBOX)["process"]["env"] == ["PATH=/bin", "HOSTNAME=web", "HOME=/", "A=mine", "B="]
    assert "TERM=xterm" in make(config(tty=True))["process"]["env"]
    assert any(entry.startswith("PATH=/usr/local/sbin:") for entry in make(of=image(Cmd=["sh"]))["process"]["env"])
    loud = make(of=image(Cmd=["sh"], Env=["HOME=/srv", "HOSTNAME=other", "EMPTY"]))["process"]["env"]
    assert {"HOME=/srv", "HOSTNAME=other", "EMPTY="} <= set(loud)


@pytest.mark.parametrize(("key", "value"), [("", b"x"), ("A\0B", b"x"), ("A", b"x\0y")])
def test_what_is_no_variable_is_refused(make: Make, key: str, value: bytes) -> None:
    with pytest.raises(InvalidArgument, match="no environment variable"):
        make(config(envs=[cri.KeyValue(key=key, value=value)]))


def test_a_variable_that_would_reach_the_container_altered_is_refused(make: Make) -> None:
    with pytest.raises(InvalidArgument, match="environment variable A is not UTF-8"):
        make(config(envs=[cri.KeyValue(key="A", value=b"\xff\xfe")]))
    assert "A=ŵ" in make(config(envs=[cri.KeyValue(key="A", value="ŵ".encode())]))["process"]["env"]


@pytest.mark.parametrize(
    ("asked", "of_image", "expected"),
    [("", "", "/"), ("", "/srv", "/srv"), ("/data", "/srv", "/data"), ("", "srv", "/srv"), ("data", "", "/data")],
)
def test_the_working_directory(make: Make, asked: str, of_image: str, expected: str) -> None:
    document = make(config(working_dir=asked), of=image(Cmd=["sh"], WorkingDir=of_image))
    assert document["process"]["cwd"] == expected


# --- who it is and what it may


def test_the_user(make: Make) -> None:
    security = Security(
        run_as_user=cri.Int64Value(value=7), run_as_group=cri.Int64Value(value=8), supplemental_groups=[9, 10]
    )
    assert make(config(security))["process"]["user"] == {"uid": 7, "gid": 8, "additionalGids": [8, 9, 10]}
    root = Security(run_as_user=cri.Int64Value(value=0))  # set, though its value is the default of the field
    assert make(config(root), of=image(Cmd=["sh"], User="55"))["process"]["user"]["uid"] == 0


def test_capabilities(make: Make) -> None:
    security = Security(capabilities=cri.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"]))
    assert make(config(security))["process"]["capabilities"]["bounding"] == ["CAP_NET_ADMIN"]
    assert len(make()["process"]["capabilities"]["bounding"]) == len(DEFAULT)


def test_a_privileged_container(make: Make) -> None:
    security = Security(
        privileged=True,
        masked_paths=["/proc/kcore"],
        readonly_paths=["/proc/sys"],
        no_new_privs=True,
        seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfileProfileType.RuntimeDefault),
        apparmor=cri.SecurityProfile(profile_type=cri.SecurityProfileProfileType.Localhost, localhost_ref="strict"),
    )
    document = make(config(security))
    assert len(document["process"]["capabilities"]["bounding"]) == len(HELD)
    assert document["process"]["noNewPrivileges"] is False
    linux = document["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == ([], [])
    assert "seccomp" not in linux
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert any(node["path"] == "/dev/null" for node in linux["devices"])
    sys = next(mount for mount in document["mounts"] if mount["destination"] == "/sys")
    assert "rw" in sys["options"]


def test_paths_are_masked_as_asked_and_no_others(make: Make) -> None:
    linux = make(config(Security(masked_paths=["/proc/acpi"], readonly_paths=["/proc/bus"])))["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == (["/proc/acpi"], ["/proc/bus"])
    linux = make()["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == ([], [])


def test_seccomp_by_the_field_and_by_the_string_before_it(make: Make) -> None:
    kind = cri.SecurityProfileProfileType
    assert "seccomp" not in make()["linux"]
    by_field = make(config(Security(seccomp=cri.SecurityProfile(profile_type=kind.RuntimeDefault))))["linux"]
    assert by_field["seccomp"]["syscalls"]
    for old in ("runtime/default", "docker/default"):
        assert make(config(Security(seccomp_profile_path=old)))["linux"]["seccomp"] == by_field["seccomp"]
    assert "seccomp" not in make(config(Security(seccomp_profile_path="unconfined")))["linux"]
    both = Security(seccomp=cri.SecurityProfile(profile_type=kind.Unconfined), seccomp_profile_path="runtime/default")
    assert "seccomp" not in make(config(both))["linux"]
    with pytest.raises(InvalidArgument, match="/no/such/profile"):
        make(config(Security(seccomp_profile_path="localhost//no/such/profile")))


def test_no_new_privileges_and_a_read_only_root(make: Make) -> None:
    document = make(config(Security(no_new_privs=True, readonly_rootfs=True)))
    assert document["process"]["noNewPrivileges"] is True
    assert document["root"]["readonly"] is True
    assert "ro" in next(mount for mount in document["mounts"] if mount["destination"] == "/etc/hosts")["options"]


@pytest.mark.parametrize(
    ("security", "kind", "message"),
    [
        (
            Security(
                apparmor=cri.SecurityProfile(
                    profile_type=cri.SecurityProfileProfileType.Localhost, localhost_ref="strict"
                )
            ),
            FailedPrecondition,
            "strict: AppArmor is not supported",
        ),
        (
            Security(namespace_options=cri.NamespaceOption(userns_options=cri.UserNamespace(mode=Mode.POD))),
            InvalidArgument,
            "user namespace",
        ),
        (Security(namespace_options=cri.NamespaceOption(pid=Mode(9))), InvalidArgument, "PID namespace mode 9"),
    ],
)
def test_what_cannot_be_given_is_refused(make: Make, security: Security, kind: type[Fault], message: str) -> None:
    with pytest.raises(kind, match=message):
        make(config(security))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (config(Security(apparmor=cri.SecurityProfile())), "AppArmor's default profile"),  # RuntimeDefault
        (config(Security(selinux_options=cri.SeLinuxOption(type="container_t"))), "SELinux"),
    ],
)
def test_confinement_is_refused_where_the_kernel_would_enforce_it(
    make: Make, asked: cri.ContainerConfig, words: str
) -> None:
    assert make(asked)["process"]["args"] == ["sh"]  # here nothing could
    with pytest.raises(FailedPrecondition, match=words):
        make(asked, on=replace(host(), apparmor=True, selinux=True))
    relabelled = cri.Mount(container_path="/d", host_path="/tmp", selinux_relabel=True)  # the kubelet always asks it
    assert make(config(mounts=[relabelled]), on=replace(host(), selinux=True))
    assert make(config(Security(privileged=True)), on=replace(host(), apparmor=True, selinux=True))


def test_an_apparmor_profile_by_the_old_string_is_refused_too(make: Make) -> None:
    with pytest.raises(FailedPrecondition, match="strict: AppArmor is not supported"):
        make(config(Security(apparmor_profile="localhost/strict")))
    assert make(config(Security(apparmor_profile="runtime/default")))["process"]["args"] == ["sh"]
    with pytest.raises(FailedPrecondition, match="AppArmor's default profile"):
        make(config(Security(apparmor_profile="runtime/default")), on=replace(host(), apparmor=True))


def test_a_cdi_device_is_refused(make: Make) -> None:
    with pytest.raises(InvalidArgument, match=r"vendor\.com/gpu=0"):
        make(config(CDI_devices=[cri.CdiDevice(name="vendor.com/gpu=0")]))


# --- namespaces


def kinds(document: Any) -> dict[str, str]:
    return {one["type"]: one.get("path", "") for one in document["linux"]["namespaces"]}


def asking_pid(mode: cri.NamespaceMode) -> cri.ContainerConfig:
    return config(Security(namespace_options=cri.NamespaceOption(pid=mode)))


def test_the_pods_namespaces_are_joined_and_mounts_are_its_own(make: Make) -> None:
    assert kinds(make()) == {"mount": "", "network": "/net", "ipc": "/ipc", "uts": "/uts", "pid": ""}
    assert kinds(make(inside=pod(uts="/uts"))) == {"mount": "", "uts": "/uts", "pid": ""}


@pytest.mark.parametrize(
    ("mode", "shared", "host_pid", "expected"),
    [
        (Mode.POD, True, False, "/proc/1/ns/pid"),
        (Mode.POD, False, False, ""),  # the pod has none to share
        (Mode.POD, False, True, None),  # nothing said: the pod's choice
        (Mode.CONTAINER, True, False, ""),
        (Mode.CONTAINER, False, True, ""),
        (Mode.NODE, False, True, None),
        (Mode.NODE, True, False, None),
    ],
)
def test_the_pid_namespace(
    make: Make, mode: cri.NamespaceMode, shared: bool, host_pid: bool, expected: str | None
) -> None:
    inside = pod(host_pid=host_pid, ipc="/ipc", **({"pid": "/proc/1/ns/pid"} if shared else {}))
    assert kinds(make(asking_pid(mode), inside=inside)).get("pid") == expected


def test_a_container_to_be_debugged_lends_its_processes(make: Make) -> None:
    assert kinds(make(asking_pid(Mode.TARGET), target="/proc/1/fd/7"))["pid"] == "/proc/1/fd/7"


def test_a_cgroup_namespace_where_version_2_has_them(make: Make) -> None:
    assert "cgroup" not in kinds(make())
    assert "cgroup" in kinds(make(on=host(cgroup_v2=True)))
    assert "cgroup" not in kinds(make(config(Security(privileged=True)), on=host(cgroup_v2=True)))


# --- limits, mounts, devices


def test_limits(make: Make) -> None:
    limits = cri.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=2**26, oom_score_adj=500)
    document = make(config(resources=limits), on=host(pids_limit=100))
    assert document["linux"]["resources"]["cpu"] == {"shares": 512}
    assert document["linux"]["resources"]["memory"] == {"limit": 2**26}
    assert document["linux"]["resources"]["pids"] == {"limit": 100}
    assert document["process"]["oomScoreAdj"] == 500
    assert document["linux"]["cgroupsPath"] == "/criw/p/c"
    assert "pids" not in make()["linux"]["resources"]
    with pytest.raises(InvalidArgument, match="cpu_shares"):
        make(config(resources=cri.LinuxContainerResources(cpu_shares=-1)))


def test_the_users_mounts_come_over_the_pods(make: Make, tmp_path: Path) -> None:
    document = make(config(mounts=[cri.Mount(container_path="/etc//hosts", host_path=str(tmp_path))]))
    assert [one["source"] for one in document["mounts"] if one["destination"] == "/etc/hosts"] == [str(tmp_path)]
    assert "rootfsPropagation" not in document["linux"]


def test_a_device(make: Make) -> None:
    asked = config(devices=[cri.Device(host_path="/dev/null", container_path="/dev/mine", permissions="r")])
    linux = make(asked)["linux"]
    assert [node["path"] for node in linux["devices"]] == ["/dev/mine"]
    assert linux["resources"]["devices"][-1] == {"allow": True, "access": "r", "type": "c", "major": 1, "minor": 3}


def test_annotations_of_the_request_do_not_reach_the_runtime(make: Make) -> None:
    assert "annotations" not in make(config(annotations={"run.oci.handler": "krun"}))


# --- what the runtime would follow out of the container, or never come back from


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("mounted", [False, True])
def test_an_image_in_which_a_kernel_file_systems_directory_is_a_link_is_refused(
    make: Make, tmp_path: Path, name: str, mounted: bool
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to("elsewhere")
    asked = config(mounts=[cri.Mount(container_path=f"/{name}", host_path="/usr")] if mounted else [])
    with pytest.raises(InvalidArgument, match=f"its /{name} is a link, which leads to /elsewhere"):
        make(asked)


def test_a_device_is_made_where_the_images_link_leads(make: Make, tmp_path: Path) -> None:
    (tmp_path / "devices").symlink_to("../../../../../srv")
    asked = [
        cri.Device(host_path="/dev/null", container_path=path, permissions="r")
        for path in ("/devices/mine", "/../../x", "/dev/in/dev")
    ]
    found = make(config(devices=asked))["linux"]["devices"]
    assert [node["path"] for node in found] == ["/srv/mine", "/x", "/dev/in/dev"]


@pytest.mark.parametrize("name", ["passwd", "group"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "link to a device", "link into proc", "mounted fifo"])
def test_accounts_that_cannot_be_read_to_an_end_are_refused(make: Make, tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / name
    asked = config()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "link to a device":  # there in the container only
            path.symlink_to("/dev/zero")
        case "link into proc":
            path.symlink_to("../proc/self/../kmsg")
        case _:
            os.mkfifo(tmp_path / "outside")
            asked = config(mounts=[cri.Mount(container_path=f"/etc/{name}", host_path=str(tmp_path / "outside"))])
    with pytest.raises(InvalidArgument, match=f"cannot use /etc/{name} of the container: .* is no plain file"):
        make(asked)


def test_accounts_may_be_linked_and_missing(make: Make, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "usr").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/usr/passwd")
    assert make()
    (tmp_path / "usr/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    assert "HOME=/root" in make()["process"]["env"]


def test_the_images_volumes_are_writable_though_the_root_is_not(make: Make, tmp_path: Path) -> None:
    document = make(config(Security(readonly_rootfs=True)), of=image(Cmd=["sh"], Volumes={"/data": {}}))
    found = next(mount for mount in document["mounts"] if mount["destination"] == "/data")
    assert (found["source"], found["options"][-1]) == (str(tmp_path / "data"), "rw")
    assert (tmp_path / "data").is_dir()
