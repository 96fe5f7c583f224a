"""A network provider of the memory only; it passes the suite of the real ones (test_provider.py)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path

from criw.errors import AlreadyExists, FailedPrecondition
from criw_network.netlink.links import Counters
from criw_network.pod import HostPort, Pod
from criw_network.provider import Attached, Condition

READY = Condition(ready=True)
NO_TRAFFIC = Counters(0, 0, 0, 0, 0, 0, 0, 0)


@dataclass
class FakeHost:
    """What outlives a provider. `failing` are errors by name of a method, each raised once, halfway."""

    wired: dict[str, tuple[HostPort, ...]] = field(default_factory=dict)
    failing: dict[str, Exception] = field(default_factory=dict)
    condition: Condition = READY


class FakeProvider:
    def __init__(self, host: FakeHost) -> None:
        self._host = host
        self._addresses = {ip_interface(f"10.0.0.{n}/24") for n in range(2, 250)}
        self._given: dict[str, Attached] = {}

    @property
    def condition(self) -> Condition:
        return self._host.condition

    def _fail(self, step: str) -> None:
        if step in self._host.failing:
            raise self._host.failing.pop(step)

    async def recover(self, attached: Sequence[tuple[Pod, Attached]]) -> Collection[str]:
        self._host.wired = {pod.id: pod.ports for pod, _ in attached}
        for pod, got in attached:
            self._given[pod.id] = got
            self._addresses -= set(got.addresses)
        return []

    async def attach(self, pod: Pod, netns: Path) -> Attached:
        if not self.condition.ready:
            raise FailedPrecondition(self.condition.message)
        for owner, ports in self._host.wired.items():
            if any(port.overlaps(other) for port in pod.ports for other in ports):
                raise AlreadyExists(f"cannot map a port: pod {owner} has it")
        got = self._given[pod.id] = Attached("eth0", (self._addresses.pop(),))
        self._host.wired[pod.id] = pod.ports
        self._fail("attach")
        netns.stat()
        return got

    async def detach(self, pod: Pod, netns: Path) -> None:
        self._fail("detach")
        self._host.wired.pop(pod.id, None)
        if pod.id in self._given:
            self._addresses |= set(self._given.pop(pod.id).addresses)

    async def counters(self, pods: Mapping[str, Path]) -> Mapping[str, tuple[str, Counters]]:
        return {pod_id: ("eth0", NO_TRAFFIC) for pod_id in pods if pod_id in self._host.wired}
