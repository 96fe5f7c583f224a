"""A pod's hosts, hostname and resolv.conf, which its containers have in /etc."""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import DnsConfig
from criw_supervisor.ledger.places import ETC, PodFiles

_ROOM_BYTES: Final = 1024 * 1024  # for what containers add to the files
_HOSTNAME_LIMIT: Final = 64  # bytes: sethostname(2)


@dataclass(frozen=True)
class EtcPlan:
    """What is written there, but for the pod's addresses."""

    hostname: str
    host_network: bool
    resolv_conf: str


def is_hostname(text: str) -> bool:
    """Whether the kernel takes the name, and a hosts file as one word."""
    return text.isprintable() and len(text.split()) == 1 and len(text.encode()) <= _HOSTNAME_LIMIT


def hostname(asked: str, *, pod_name: str, pod_id: str, host_network: bool) -> str:
    """The pod's hostname: the one asked for, else the pod's name, or its short id where the name cannot be one.

    On the host's network it is the host's. Raises InvalidArgument for a name that is none.
    """
    if host_network:
        return socket.gethostname()
    if not asked:
        return pod_name if is_hostname(pod_name) else pod_id[:12]
    if not is_hostname(asked):
        raise InvalidArgument(f"cannot use hostname {asked!r}: at most 64 bytes, without white space")
    return asked


def resolv_conf(dns: DnsConfig | None) -> str:
    """resolv.conf(5) with the servers, searches and options as given; the host's own if the request has none.

    Raises InvalidArgument for settings that are none.
    """
    if dns is None or not (dns.servers or dns.searches or dns.options):
        path = Path("/etc/resolv.conf")
        return path.read_text(errors="replace") if path.exists() else ""
    for word in (*dns.servers, *dns.searches, *dns.options):
        if not word or any(character.isspace() for character in word):
            raise InvalidArgument(f"cannot use DNS setting {word!r}: it is empty or has white space in it")
    for server in dns.servers:
        try:
            ipaddress.ip_address(server)
        except ValueError as err:
            raise InvalidArgument(f"cannot use DNS server {server}: it is no IP address") from err
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.append(f"search {' '.join(dns.searches)}")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "\n".join(lines) + "\n"


def write(files: PodFiles, plan: EtcPlan) -> None:
    """Write the files, on a small file system of their own. Blocking.

    Containers write to them as they like: what they can fill is only this, and what flags they set end with it.
    """
    texts = {"hostname": f"{plan.hostname}\n", "hosts": _hosts(plan), "resolv.conf": plan.resolv_conf}
    size = sum(len(text.encode()) for text in texts.values()) + _ROOM_BYTES
    files.own_etc.mkdir()
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("etc", files.own_etc, fstype="tmpfs", flags=flags, data=f"mode=755,size={size}")
    for name in ETC:
        files.etc(name).write_text(texts[name])
        files.etc(name).chmod(0o644)


def add_addresses(files: PodFiles, plan: EtcPlan, ips: Sequence[str]) -> None:
    """Add the pod's own name with its addresses to the hosts file that was written. It is in memory: nothing blocks."""
    short, dot, _ = plan.hostname.partition(".")
    names = f"{plan.hostname}\t{short}" if dot else plan.hostname
    with files.etc("hosts").open("a") as hosts:
        hosts.writelines(f"{ip}\t{names}\n" for ip in ips)


def _hosts(plan: EtcPlan) -> str:
    if plan.host_network:
        path = Path("/etc/hosts")
        return path.read_text(errors="replace") if path.exists() else ""
    return "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
