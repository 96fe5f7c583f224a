"""What the agent needs of whoever wires its pods: today the builtin provider, later also CNI plugins.

tests/unit/criw_network/test_provider.py is this contract as tests.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from criw_network.netlink.links import Counters, Interface
from criw_network.pod import Pod


@dataclass(frozen=True)
class Attached:
    """What a pod got. `addresses` have their prefix length, the primary family first."""

    interface: str
    addresses: tuple[Interface, ...]


@dataclass(frozen=True)
class Condition:
    """Whether pods can be wired; if not, one CamelCase word and a sentence why."""

    ready: bool
    reason: str = ""
    message: str = ""


class Provider(Protocol):
    """Wires pods into the network. The agent makes a pod's namespace before `attach`, and ends it after `detach`."""

    @property
    def condition(self) -> Condition: ...

    async def recover(self, attached: Sequence[tuple[Pod, Attached]]) -> Collection[str]:
        """Once, before all else: take over these pods from an agent that ended, and remove what else has our marks.

        The ids of pods of which something cannot be removed now are answered: they are to be detached later.
        """

    async def attach(self, pod: Pod, netns: Path) -> Attached:
        """Wire a pod that is not attached. What a failure leaves is for `detach`.

        Raises what `Network.Attach` says.
        """

    async def detach(self, pod: Pod, netns: Path) -> None:
        """Undo `attach`, however far it came: a pod that is not attached, or a namespace that is gone, is a success."""

    async def counters(self, pods: Mapping[str, Path]) -> Mapping[str, tuple[str, Counters]]:
        """Name and counters of each pod's interface, as the pod sees it; pods that have none are left out.

        `pods` are namespaces by the pods' ids.
        """
