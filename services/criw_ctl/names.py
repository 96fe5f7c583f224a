"""What people type for a pod or a container: an id, the beginning of one, or a name if only one has it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from criw import ids
from criw.errors import NotFound
from criw.rpc.client import ask
from criw_ctl.door import Door
from criw_proto.runtime.v1 import Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox

Named: TypeAlias = PodSandbox | Container
T = TypeVar("T", bound=PodSandbox | Container)


def name_of(item: Named) -> str:
    return item.metadata.name if item.metadata else ""


def runs(container: Container) -> bool:
    return container.state is ContainerState.CONTAINER_RUNNING


@dataclass(frozen=True)
class Inventory:
    """All pods and containers, newest first."""

    pods: Sequence[PodSandbox]
    containers: Sequence[Container]

    def containers_of(self, pod: PodSandbox) -> list[Container]:
        return [container for container in self.containers if container.pod_sandbox_id == pod.id]

    def container(self, text: str) -> Container:
        """The container `text` means. Raises NotFound if that is none, or not clear."""
        return _pick(text, self.containers, self._latest_named(text), what="container")

    def pod(self, text: str) -> PodSandbox:
        """The pod `text` means. Raises NotFound if that is none, or not clear."""
        return _pick(text, self.pods, [pod for pod in self.pods if name_of(pod) == text], what="pod")

    def target(self, text: str) -> Container:
        """What a command is run in: the container `text` means, or the only one that runs in the pod it means.

        POD/CONTAINER says both. Raises NotFound if it means none, or is not clear.
        """
        of, slash, inside = text.partition("/")
        if slash:
            pod = self.pod(of)
            return Inventory([pod], self.containers_of(pod)).container(inside)
        try:
            return self.container(text)
        except NotFound as err:
            try:
                pod = self.pod(text)
            except NotFound:
                raise err from None
        running = [container for container in self.containers_of(pod) if runs(container)]
        if len(running) == 1:
            return running[0]
        if not running:
            raise NotFound(f"cannot find a container that runs in pod {text}; criwctl ps -a lists them all")
        which = ", ".join(f"{text}/{name_of(container)}" for container in running)
        raise NotFound(f"cannot tell which container of pod {text} is meant; write {which}")

    def pod_or_container(self, text: str) -> Named:
        """The pod or container `text` means; a name that a pod shares with its own container means the pod.

        Raises NotFound if it is none, or not clear.
        """
        pods = [pod for pod in self.pods if name_of(pod) == text]
        inside = {pod.id for pod in pods}
        others = [container for container in self._latest_named(text) if container.pod_sandbox_id not in inside]
        everything: list[Named] = [*self.pods, *self.containers]
        named: list[Named] = [*pods, *others]
        return _pick(text, everything, named, what="pod or container")

    def _latest_named(self, name: str) -> list[Container]:
        """The containers of that name; of those that followed one another in the same pod only the last."""
        latest: dict[str, Container] = {}
        for container in self.containers:
            if name_of(container) == name:
                latest.setdefault(container.pod_sandbox_id, container)
        return list(latest.values())


def _pick(text: str, items: Sequence[T], named: Sequence[T], *, what: str) -> T:
    by_id = {item.id: item for item in items}
    if text in by_id:
        return by_id[text]
    if len(named) == 1:
        return named[0]
    if named:
        found = ", ".join(item.id[:13] for item in named)
        raise NotFound(f"cannot tell which {what} {text} means: {found} have that name; use the id")
    try:
        return by_id[ids.resolve(text, by_id, what=what)]
    except NotFound as err:
        raise NotFound(f"{err}; criwctl pods and criwctl ps -a list what there is") from err


async def take_inventory(door: Door) -> Inventory:
    """Ask for all pods and containers."""
    pods, containers = await asyncio.gather(
        ask(door.runtime.list_pod_sandbox, ListPodSandboxRequest()),
        ask(door.runtime.list_containers, ListContainersRequest()),
    )
    return Inventory(
        pods=sorted(pods.items, key=lambda pod: pod.created_at, reverse=True),
        containers=sorted(containers.containers, key=lambda container: container.created_at, reverse=True),
    )
