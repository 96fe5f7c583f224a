"""The configuration of the whole crew, for those who look after all of it."""

from typing import Self

from pydantic import model_validator

from criw.config.common import AGENTS, AgentName, Common
from criw.config.cri import CriFacts, CriSection
from criw.config.image import ImageFacts, ImageSection
from criw.config.network import NetworkFacts, NetworkSection
from criw.config.storage import StorageFacts, StorageSection
from criw.config.streams import StreamsFacts, StreamsSection
from criw.config.supervisor import SupervisorFacts, SupervisorSection


class CrewFacts(Common):
    """What a client of all processes reads."""

    cri: CriFacts = CriFacts()
    image: ImageFacts = ImageFacts()
    storage: StorageFacts = StorageFacts()
    network: NetworkFacts = NetworkFacts()
    streams: StreamsFacts = StreamsFacts()
    supervisor: SupervisorFacts = SupervisorFacts()

    @model_validator(mode="after")
    def _own_users(self) -> Self:
        """Processes of one user may trace each other: the privileges of each would be those of both."""
        users: dict[int, AgentName] = {}
        for agent in AGENTS:
            if (user := self.facts(agent).user) and (other := users.setdefault(user, agent)) != agent:
                raise ValueError(f"{other}.user and {agent}.user are both {user}: give each a user of its own")
        return self


class Config(CrewFacts):
    """Everything."""

    cri: CriSection = CriSection()
    image: ImageSection = ImageSection()
    storage: StorageSection = StorageSection()
    network: NetworkSection = NetworkSection()
    streams: StreamsSection = StreamsSection()
    supervisor: SupervisorSection = SupervisorSection()
