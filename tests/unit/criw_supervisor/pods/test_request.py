"""What RunPodSandbox asks for, and what it is refused for."""

from collections.abc import Callable

import pytest

from criw.errors import InvalidArgument
from criw_proto.runtime import v1 as cri
from criw_supervisor.ledger.pod import PodName
from criw_supervisor.peers.network import HostPort
from criw_supervisor.pods.request import PodPlan, plan

Mode = cri.NamespaceMode


def config(options: cri.NamespaceOption | None = None, **fields: object) -> cri.PodSandboxConfig:
    made = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="default", uid="u", attempt=1))
    security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    made.linux = cri.LinuxPodSandboxConfig(security_context=security)
    for name, value in fields.items():
        setattr(made.linux if name in {"cgroup_parent", "sysctls"} else made, name, value)
    return made


def planned(asked: cri.PodSandboxConfig | None, handler: str = "") -> PodPlan:
    return plan("p" * 64, asked, handler, cgroup_parent="/criw")


def test_a_request_that_says_little_gets_everything_of_its_own() -> None:
    made = planned(config(), "crun")
    assert (made.name, made.runtime_handler) == (PodName("default", "web", "u", 1), "crun")
    assert made.cgroup == f"/criw/{'p' * 64}"
    assert (made.namespaces.own_uts, made.namespaces.own_ipc, made.namespaces.hostname) == (True, True, "web")
    assert made.network is not None
    assert made.network.host_ports == ()
    assert made.infra  # POD is what a request says that says nothing
    assert cri.PodSandboxConfig.parse(made.config) == config()


def test_the_hosts_namespaces() -> None:
    made = planned(config(cri.NamespaceOption(network=Mode.NODE, ipc=Mode.NODE, pid=Mode.NODE)))
    assert made.network is None
    assert made.etc.host_network
    assert (made.namespaces.own_uts, made.namespaces.own_ipc, made.infra) == (False, False, False)


def test_sysctls_and_host_ports_go_to_those_who_set_them() -> None:
    mappings = [
        cri.PortMapping(container_port=80, host_port=8080, host_ip="10.0.0.1"),
        cri.PortMapping(protocol=cri.Protocol.UDP, container_port=53, host_port=53),
        cri.PortMapping(container_port=9999),  # only tells what the pod listens on
    ]
    made = planned(config(port_mappings=mappings, sysctls={"net.core.somaxconn": "9", "kernel.msgmax": "8"}))
    assert made.network is not None
    assert made.network.host_ports == (HostPort("tcp", 80, 8080, "10.0.0.1"), HostPort("udp", 53, 53, ""))
    assert made.network.sysctls == {"net.core.somaxconn": "9"}
    assert made.namespaces.sysctls == {"kernel.msgmax": "8"}


def _without(key: str) -> cri.PodSandboxConfig:
    made = config()
    setattr(made.metadata, key, "")
    return made


REFUSED: list[tuple[str, Callable[[], cri.PodSandboxConfig | None]]] = [
    ("config is missing", lambda: None),
    (r"config\.metadata is missing", cri.PodSandboxConfig),
    (r"metadata\.name is missing", lambda: _without("name")),
    (r"metadata\.namespace is missing", lambda: _without("namespace")),
    (r"metadata\.uid is missing", lambda: _without("uid")),
    ("must be an absolute path", lambda: config(log_directory="logs")),
    ("user namespaces are not supported", lambda: config(
        cri.NamespaceOption(userns_options=cri.UserNamespace(mode=Mode.POD)))),
    ("mode of pid must be", lambda: config(cri.NamespaceOption(pid=Mode.TARGET))),
    ("mode of network must be", lambda: config(cri.NamespaceOption(network=Mode.CONTAINER))),
    ("mode of ipc must be", lambda: config(cri.NamespaceOption(ipc=Mode.TARGET))),
    ("cannot use hostname", lambda: config(hostname="no name")),
    ("cannot use DNS server", lambda: config(dns_config=cri.DnsConfig(servers=["here"]))),
    ("cannot set sysctl kernel.panic", lambda: config(sysctls={"kernel.panic": "1"})),
    ("cannot use cgroup parent", lambda: config(cgroup_parent="/a/../b")),
    ("cannot map host port 70000", lambda: config(port_mappings=[cri.PortMapping(container_port=1, host_port=70000)])),
    ("cannot map host port 1 ", lambda: config(port_mappings=[cri.PortMapping(container_port=0, host_port=1)])),
]  # fmt: skip


@pytest.mark.parametrize(("message", "asked"), REFUSED, ids=[message for message, _ in REFUSED])
def test_what_cannot_be_is_refused_before_anything_is_made(
    message: str, asked: Callable[[], cri.PodSandboxConfig | None]
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        planned(asked())
