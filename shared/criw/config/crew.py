"""The configuration of the whole crew, for those who look after all of it."""

from criw.config.common import Common
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


class Config(CrewFacts):
    """Everything."""

    cri: CriSection = CriSection()
    image: ImageSection = ImageSection()
    storage: StorageSection = StorageSection()
    network: NetworkSection = NetworkSection()
    streams: StreamsSection = StreamsSection()
    supervisor: SupervisorSection = SupervisorSection()
