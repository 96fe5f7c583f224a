"""Kernel settings of a pod: which of its namespaces each belongs to."""

from collections.abc import Mapping
from typing import Final

from criw.errors import InvalidArgument

_IPC: Final = ("kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue.")
_UTS: Final = ("kernel.domainname",)


def split(sysctls: Mapping[str, str], *, own_network: bool, own_ipc: bool) -> tuple[dict[str, str], dict[str, str]]:
    """The sysctls of the pod's network namespace, and those of its IPC and UTS namespaces, with dotted names.

    Raises InvalidArgument for one that belongs to no namespace of the pod: it would change the host.
    """
    network: dict[str, str] = {}
    local: dict[str, str] = {}
    for name, value in sysctls.items():
        dotted = name.replace("/", ".")
        if dotted.startswith("net.") and own_network:
            network[dotted] = value
        elif (dotted.startswith(_IPC) and own_ipc) or (dotted in _UTS and own_network):
            local[dotted] = value
        else:
            raise InvalidArgument(f"cannot set sysctl {name}: it belongs to no namespace of the pod")
    return network, local
