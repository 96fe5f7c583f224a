"""What is to be attached: a pod, as the supervisor describes it."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict

from criw.errors import InvalidArgument

Protocol: TypeAlias = Literal["tcp", "udp", "sctp"]
_PROTOCOLS: Final[dict[str, Protocol]] = {name: name for name in get_args(Protocol)}
_ALL_OF_FAMILY: Final = {"0.0.0.0": 4, "::": 6}  # noqa: S104 — compared with, not bound to


class HostPort(BaseModel):
    """A port of the host that leads to a pod. `host_ip` is an address in its canonical form, or empty for all."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    protocol: Protocol
    host_port: int
    container_port: int
    host_ip: str = ""

    @property
    def families(self) -> frozenset[int]:
        """The IP versions it is open for."""
        return frozenset({4, 6}) if not self.host_ip else frozenset({ipaddress.ip_address(self.host_ip).version})

    @property
    def every_address(self) -> bool:
        """Whether it is open on all addresses of its families."""
        return not self.host_ip or self.host_ip in _ALL_OF_FAMILY

    def overlaps(self, other: "HostPort") -> bool:
        """Whether some packet would match both."""
        return (
            (self.protocol, self.host_port) == (other.protocol, other.host_port)
            and bool(self.families & other.families)
            and (self.every_address or other.every_address or self.host_ip == other.host_ip)
        )

    def __str__(self) -> str:
        return f"{self.protocol} {self.host_port}" + (f" on {self.host_ip}" if self.host_ip else "")


def parse_port(protocol: str, *, host_port: int, container_port: int, host_ip: str) -> HostPort:
    """One port mapping of a request. Raises InvalidArgument."""
    name = _PROTOCOLS.get(protocol)
    if name is None:
        raise InvalidArgument(
            f"cannot map port {host_port}: protocol {protocol!r} is not one of {', '.join(_PROTOCOLS)}"
        )
    for what, number in (("host", host_port), ("container", container_port)):
        if not 0 < number < 1 << 16:
            raise InvalidArgument(f"cannot map port {host_port}: {what} port {number} is not between 1 and 65535")
    if host_ip:
        try:
            address = ipaddress.ip_address(host_ip)
        except ValueError as err:
            raise InvalidArgument(f"cannot map port {host_port}: {host_ip!r} is not an IP address") from err
        if "%" in host_ip:  # a zone is any text: it must not get into the rules
            raise InvalidArgument(f"cannot map port {host_port}: {host_ip!r} has a zone")
        if address.version == 6 and address.is_loopback:
            raise InvalidArgument(f"cannot map port {host_port}: nothing leads from ::1 to a pod; use 127.0.0.1")
        host_ip = str(address)
    return HostPort(protocol=name, host_port=host_port, container_port=container_port, host_ip=host_ip)


@dataclass(frozen=True)
class Dns:
    """How the pod resolves names."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bandwidth:
    """Limits of the pod's traffic, 0 for none. Ingress is what comes to the pod."""

    ingress_bits_per_s: int = 0
    ingress_burst_bits: int = 0
    egress_bits_per_s: int = 0
    egress_burst_bits: int = 0


@dataclass(frozen=True)
class Pod:
    """All that `Network.Attach` says. `cgroup` is below the root of its hierarchies.

    `user_namespace` is the path of the one that is to own the network namespace, or empty for the host's.
    """

    id: str
    name: str = ""
    namespace: str = ""
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[HostPort, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    dns: Dns = Dns()
    bandwidth: Bandwidth = Bandwidth()
    cgroup: str = ""
    user_namespace: str = ""
