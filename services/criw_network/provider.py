"""What the agent needs of whoever wires its pods: today the builtin provider, later also CNI plugins."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from criw.store import Record
from criw_network.addresses import Network
from criw_network.hostports import HostPort
from criw_network.links import Counters


class Attachment(Record):
    """A pod's place in the network. `addresses` have their prefix length, the primary family first.

    With any state but `attached` it is an intent: something of it may exist, and it is to be undone.
    """

    kind: ClassVar[str] = "attachment"
    state: Literal["attaching", "attached", "detaching"]
    addresses: tuple[str, ...]
    ports: tuple[HostPort, ...] = ()


@dataclass(frozen=True)
class Condition:
    """Whether pods can be wired; if not, one CamelCase word and a sentence why."""

    ready: bool
    reason: str = ""
    message: str = ""


class Provider(Protocol):
    """Wires pods into the network. The namespace is made before `connect` and gone before `disconnect`."""

    @property
    def condition(self) -> Condition: ...

    @property
    def networks(self) -> Sequence[Network]:
        """The pod ranges in force."""

    def free_addresses(self) -> Mapping[int, int]:
        """How many pods each IP version has room for."""

    async def recover(self, attached: Sequence[Attachment]) -> None:
        """Take over these pods from an agent that ended, and remove all else that carries our marks."""

    def use(self, networks: Sequence[Network], attached: Iterable[Attachment]) -> None:
        """Change the pod ranges. Raises FailedPrecondition, changing nothing, if a pod would not fit."""

    async def refresh(self) -> None:
        """Bring the host up to date with the ranges, if pods depend on it now."""

    def reserve(self, pod_id: str, ports: Sequence[HostPort]) -> tuple[Attachment, Sequence[Record]]:
        """Addresses and ports for a pod, and what else to save with them. Raises what `Network.Attach` says."""

    def release(self, attachment: Attachment) -> None:
        """Give back what `reserve` gave."""

    async def connect(self, attachment: Attachment, netns: Path) -> None:
        """Wire the pod. What a failure leaves is for `disconnect`."""

    async def disconnect(self, attachment: Attachment) -> None:
        """Undo `connect`, as far as it came."""

    async def counters(self, pod_ids: Sequence[str]) -> Mapping[str, tuple[str, Counters]]:
        """Name and counters of each pod's interface, as the pod sees it; pods that have none are left out."""

    async def close(self, *, idle: bool) -> None:
        """The agent ends; with `idle`, no pod is left and the host is to be as it was."""
