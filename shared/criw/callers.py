"""Who may call whom: the design's table, by gRPC service.

Root may call everything: the supervisor and criwctl as root need not be named. The door is for whoever may use its
socket: root and the configured group.
"""

import os
from collections.abc import Mapping
from typing import Final

from criw.config.common import AgentName, Common
from criw.listener import group_id
from criw.rpc.peers import Callers

SERVED_TO: Final[Mapping[AgentName, Mapping[str, frozenset[AgentName]]]] = {
    "supervisor": {"runtime.v1.RuntimeService": frozenset({"cri"})},
    "image": {
        "runtime.v1.ImageService": frozenset({"cri"}),
        "criw.image.v1.Images": frozenset({"cri"}),
    },
    "storage": {
        "criw.storage.v1.Layers": frozenset({"image"}),
        "criw.storage.v1.Disk": frozenset({"image"}),
        "criw.storage.v1.Rootfs": frozenset(),
    },
    "streams": {"criw.streams.v1.Streams": frozenset()},
    "network": {
        "criw.network.v1.Network": frozenset(),
        "criw.network.v1.NetworkStatus": frozenset({"cri"}),
    },
}


def callers_of(agent: AgentName, settings: Common) -> Callers:
    """Whom a process answers. Its settings must have the sections of those the table names for it."""
    if agent == "cri":
        return Callers(group=group_id(settings.group) if settings.group else None)
    if _of_one_user(agent, settings):
        return Callers()
    users = {
        service: frozenset(settings.facts(caller).user for caller in callers)
        for service, callers in SERVED_TO[agent].items()
    }
    return Callers(group=settings.crew_gid, users=users)


def user_of(agent: AgentName, settings: Common, *, seen_from: AgentName) -> int:
    """Whom another agent runs as."""
    return os.geteuid() if _of_one_user(seen_from, settings) else settings.facts(agent).user


def _of_one_user(agent: AgentName, settings: Common) -> bool:
    """Whether this process is of a crew that one user runs as a whole: neither root nor its own user has started it.

    There one agent can do to another what it likes, as it may trace it; so each answers the others whatever they ask.
    """
    return os.geteuid() not in {0, settings.facts(agent).user}
