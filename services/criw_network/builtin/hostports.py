"""Host ports: whether a pod can have what it asks for, and which pod has which."""

from collections.abc import Sequence

from criw.errors import AlreadyExists, InvalidArgument
from criw_network.pod import HostPort, Protocol


def check(ports: Sequence[HostPort], *, families: frozenset[int]) -> None:
    """Raises InvalidArgument if two ports of one pod overlap, or one is on a family the pod has no address of."""
    for at, port in enumerate(ports):
        if not port.families & families:
            raise InvalidArgument(f"cannot map port {port}: pods have no address of that family here")
        for other in ports[:at]:
            if port.overlaps(other):
                raise InvalidArgument(f"cannot map port {port}: the request maps it twice")


class Taken:
    """The host ports of all pods."""

    def __init__(self) -> None:
        self._ports: dict[tuple[Protocol, int], dict[HostPort, str]] = {}

    def take(self, pod_id: str, ports: Sequence[HostPort]) -> None:
        """Raises AlreadyExists, taking none, if another pod has one of them."""
        for port in ports:
            for other, owner in self._ports.get((port.protocol, port.host_port), {}).items():
                if owner != pod_id and port.overlaps(other):
                    raise AlreadyExists(f"cannot map port {port}: pod {owner} has it; remove that pod or use another")
        for port in ports:
            self._ports.setdefault((port.protocol, port.host_port), {})[port] = pod_id

    def give_back(self, pod_id: str, ports: Sequence[HostPort]) -> None:
        for port in ports:
            key = (port.protocol, port.host_port)
            owners = self._ports.get(key, {})
            if owners.get(port) == pod_id:
                del owners[port]
                if not owners:
                    del self._ports[key]
