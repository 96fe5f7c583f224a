"""What a pod has on the host besides its network: IPC and UTS namespaces, shared memory, and its files in /etc.

Everything of a pod is below one directory, named after its id. The namespaces are pinned there by bind mounts: they
need no process. All functions block.
"""

import errno
import ipaddress
import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import InvalidArgument
from criw.kernel import suppress_errno
from criw.mountinfo import mounts_below
from criw_proto.runtime.v1 import DnsConfig

_SHM_OPTIONS: Final = "mode=1777,size=67108864"
_IPC_SYSCTLS: Final = ("kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue.")
_UTS_SYSCTLS: Final = ("kernel.domainname",)
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True)
class SandboxFiles:
    """Where a pod keeps its things; `directory` is `<run>/supervisor/pods/<pod id>`."""

    directory: Path

    @property
    def ipc(self) -> Path:
        return self.directory / "ns" / "ipc"

    @property
    def uts(self) -> Path:
        return self.directory / "ns" / "uts"

    @property
    def shm(self) -> Path:
        return self.directory / "shm"

    def etc(self, name: str) -> Path:
        """The pod's hosts, hostname or resolv.conf."""
        return self.directory / name

    def namespaces(self) -> dict[str, str]:
        """OCI type and path of the namespaces pinned here."""
        return {kind: os.fspath(path) for kind, path in (("ipc", self.ipc), ("uts", self.uts)) if path.exists()}

    def mounts(self) -> dict[str, Path]:
        """Mount points in a container and what goes there. Without its own IPC a pod shares the host's /dev/shm."""
        names = {f"/etc/{name}": self.etc(name) for name in ("hosts", "hostname", "resolv.conf")}
        shm = self.shm if self.shm.exists() else Path("/dev/shm")  # noqa: S108 — the host's, on purpose
        return {**names, "/dev/shm": shm}  # noqa: S108


def split_sysctls(
    sysctls: Mapping[str, str], *, own_network: bool, own_ipc: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """The sysctls of the pod's network namespace, and those of its IPC and UTS namespaces.

    Raises InvalidArgument for one that belongs to no namespace of the pod: it would change the host.
    """
    network: dict[str, str] = {}
    local: dict[str, str] = {}
    for name, value in sysctls.items():
        dotted = name.replace("/", ".")
        if dotted.startswith("net.") and own_network:
            network[dotted] = value
        elif (dotted.startswith(_IPC_SYSCTLS) and own_ipc) or (dotted in _UTS_SYSCTLS and own_network):
            local[dotted] = value
        else:
            raise InvalidArgument(f"cannot set sysctl {name}: it belongs to no namespace of the pod")
    return network, local


def is_hostname(text: str) -> bool:
    """Whether the kernel and a hosts file would take the name."""
    return _HOSTNAME.fullmatch(text) is not None


def check_hostname(hostname: str) -> None:
    """Raises InvalidArgument for a name that is none."""
    if not is_hostname(hostname):
        raise InvalidArgument(f"cannot use hostname {hostname!r}: letters, digits, dots and dashes only, at most 64")


def create(files: SandboxFiles, *, hostname: str, own_uts: bool, own_ipc: bool, sysctls: Mapping[str, str]) -> None:
    """Make the pod's directory with its namespaces and shared memory. Changes the calling thread's namespaces.

    Raises InvalidArgument for a sysctl the kernel does not take. What was made stays until `remove`.
    """
    files.ipc.parent.mkdir(parents=True)
    files.directory.chmod(0o711)
    kinds = (kernel.CLONE_NEWUTS if own_uts else 0) | (kernel.CLONE_NEWIPC if own_ipc else 0)
    if kinds:
        kernel.unshare(kinds)
    if own_uts:
        kernel.sethostname(hostname)
        _pin("uts", files.uts)
    for name, value in sysctls.items():
        try:
            Path("/proc/sys", *name.split(".")).write_text(value)
        except OSError as err:
            raise InvalidArgument(f"cannot set sysctl {name} to {value!r}: {err.strerror}") from err
    if own_ipc:
        _pin("ipc", files.ipc)
        files.shm.mkdir()
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("shm", files.shm, fstype="tmpfs", flags=flags, data=_SHM_OPTIONS)


def _pin(kind: str, handle: Path) -> None:
    handle.touch()
    kernel.mount(f"/proc/thread-self/ns/{kind}", handle, flags=kernel.MS_BIND)


def write_etc(
    files: SandboxFiles, *, hostname: str, ips: Sequence[str], host_network: bool, dns: DnsConfig | None
) -> None:
    """The pod's hosts, hostname and resolv.conf. Raises InvalidArgument for DNS settings that are none."""
    files.etc("hostname").write_text(f"{hostname}\n")
    if host_network:
        hosts = Path("/etc/hosts").read_text(errors="replace") if Path("/etc/hosts").exists() else ""
    else:
        names = f"{hostname}\t{hostname.partition('.')[0]}" if "." in hostname else hostname
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", *(f"{ip}\t{names}" for ip in ips)]
        hosts = "\n".join(lines) + "\n"
    files.etc("hosts").write_text(hosts)
    files.etc("resolv.conf").write_text(resolv_conf(dns))
    for name in ("hosts", "hostname", "resolv.conf"):
        files.etc(name).chmod(0o644)


def resolv_conf(dns: DnsConfig | None) -> str:
    """resolv.conf(5) with the servers, searches and options as given; the host's own if the request has none."""
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


def unpin(files: SandboxFiles) -> None:
    """Give back namespaces and shared memory; the files in /etc stay for the status. Repeating it is a success."""
    for point in (files.shm, files.ipc, files.uts):
        with suppress_errno(errno.ENOENT, errno.EINVAL):  # never made, or made but not mounted
            kernel.umount2(point, flags=kernel.MNT_DETACH)
        if point.is_dir():
            point.rmdir()
        else:
            point.unlink(missing_ok=True)


def remove(files: SandboxFiles) -> None:
    """Remove everything. Repeating it is a success."""
    if files.directory.exists():
        unpin(files)
        for point in mounts_below(files.directory):
            kernel.umount2(point, flags=kernel.MNT_DETACH)
        shutil.rmtree(files.directory)


def host_name() -> str:
    """The host's name, for pods on its network."""
    return socket.gethostname()
