"""RunPodSandbox's request, interpreted once: every refusal is here, and only the record has the message after it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import InvalidArgument
from criw_proto.criw.network.v1 import Dns
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups.parent import check_parent
from criw_supervisor.ledger.pod import PodName, namespace_options
from criw_supervisor.ledger.sameness import digest
from criw_supervisor.peers.network import HostPort, NetworkPlan
from criw_supervisor.pods import etc, sysctls
from criw_supervisor.pods.etc import EtcPlan
from criw_supervisor.pods.namespaces import NamespacesPlan

_PROTOCOLS: Final = {cri.Protocol.TCP: "tcp", cri.Protocol.UDP: "udp", cri.Protocol.SCTP: "sctp"}
_PORTS: Final = range(1, 65536)


@dataclass(frozen=True)
class PodPlan:
    """A pod sandbox to be made, a part for each of those who make it."""

    id: str
    name: PodName
    config: bytes  # runtime.v1.PodSandboxConfig as it came
    digest: str  # of the request
    runtime_handler: str  # as requested: "" is the default
    cgroup: str  # from the root of each hierarchy
    namespaces: NamespacesPlan
    etc: EtcPlan
    network: NetworkPlan | None  # None on the host's
    infra: bool  # whether containers share a PID namespace, which needs a process


def plan(pod_id: str, config: cri.PodSandboxConfig | None, runtime_handler: str, *, cgroup_parent: str) -> PodPlan:
    """What a request asks for; `cgroup_parent` is for pods that name none. Raises InvalidArgument."""
    if config is None:
        raise InvalidArgument("cannot run the pod sandbox: config is missing")
    name = _name(config)
    options = _namespaces(config, name)
    host_network = options.network == cri.NamespaceMode.NODE
    own_ipc = options.ipc != cri.NamespaceMode.NODE
    linux = config.linux or cri.LinuxPodSandboxConfig()
    if config.log_directory and not Path(config.log_directory).is_absolute():
        raise InvalidArgument(
            f"cannot run pod sandbox {name.name}: log_directory {config.log_directory} must be an absolute path"
        )
    of_network, of_others = sysctls.split(linux.sysctls, own_network=not host_network, own_ipc=own_ipc)
    hostname = etc.hostname(config.hostname, pod_name=name.name, pod_id=pod_id, host_network=host_network)
    cgroup = check_parent(linux.cgroup_parent) if linux.cgroup_parent else f"{cgroup_parent}/{pod_id}"
    return PodPlan(
        id=pod_id,
        name=name,
        config=bytes(config),
        digest=digest(config),
        runtime_handler=runtime_handler,
        cgroup=cgroup,
        namespaces=NamespacesPlan(not host_network, own_ipc, hostname, of_others),
        etc=EtcPlan(hostname, host_network, etc.resolv_conf(config.dns_config)),
        network=None if host_network else _network(config, name, cgroup, of_network),
        infra=options.pid == cri.NamespaceMode.POD,
    )


def _name(config: cri.PodSandboxConfig) -> PodName:
    if config.metadata is None:
        raise InvalidArgument("cannot run the pod sandbox: config.metadata is missing")
    for key in ("name", "namespace", "uid"):
        if not getattr(config.metadata, key):
            raise InvalidArgument(f"cannot run the pod sandbox: config.metadata.{key} is missing")
    return PodName.of(config.metadata)


def _namespaces(config: cri.PodSandboxConfig, name: PodName) -> cri.NamespaceOption:
    options = namespace_options(config)
    if options.userns_options is not None and options.userns_options.mode != cri.NamespaceMode.NODE:
        raise InvalidArgument(
            f"cannot run pod sandbox {name.name}: user namespaces are not supported by this runtime (see Status)"
        )
    if options.pid not in {cri.NamespaceMode.POD, cri.NamespaceMode.CONTAINER, cri.NamespaceMode.NODE}:
        raise InvalidArgument(
            f"cannot run pod sandbox {name.name}: namespace mode of pid must be POD, CONTAINER or NODE"
        )
    for key in ("network", "ipc"):
        if getattr(options, key) not in {cri.NamespaceMode.POD, cri.NamespaceMode.NODE}:
            raise InvalidArgument(f"cannot run pod sandbox {name.name}: namespace mode of {key} must be POD or NODE")
    return options


def _network(config: cri.PodSandboxConfig, name: PodName, cgroup: str, sysctls: Mapping[str, str]) -> NetworkPlan:
    dns = config.dns_config or cri.DnsConfig()
    return NetworkPlan(
        name=name.name,
        namespace=name.namespace,
        uid=name.uid,
        cgroup=cgroup,
        annotations=config.annotations,
        host_ports=_host_ports(config),
        sysctls=sysctls,
        dns=Dns(servers=dns.servers, searches=dns.searches, options=dns.options),
    )


def _host_ports(config: cri.PodSandboxConfig) -> tuple[HostPort, ...]:
    """The mappings with a host port; others only tell what the pod listens on."""
    return tuple(_host_port(mapping) for mapping in config.port_mappings if mapping.host_port)


def _host_port(mapping: cri.PortMapping) -> HostPort:
    if mapping.container_port not in _PORTS or mapping.host_port not in _PORTS or mapping.protocol not in _PROTOCOLS:
        raise InvalidArgument(
            f"cannot map host port {mapping.host_port} to port {mapping.container_port}: ports are 1 to 65535, "
            "protocols TCP, UDP and SCTP"
        )
    return HostPort(_PROTOCOLS[mapping.protocol], mapping.container_port, mapping.host_port, mapping.host_ip)
