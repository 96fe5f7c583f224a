"""The storage agent's part of the configuration."""

from pydantic import Field, PositiveFloat, PositiveInt

from criw.config.common import FIRST_ID, Common, Facts, User
from criw.config.image import ImageFacts


class StorageFacts(Facts):
    """What others may know of the storage agent."""

    user: User = FIRST_ID + 2
    http: str = "127.0.0.1:9472"


class StorageSection(StorageFacts, extra="forbid"):
    """The storage agent."""

    unpack_workers: PositiveInt = Field(default=2, description="layers unpacked at once")
    usage_interval_s: PositiveFloat = Field(default=10, description="how often disk usage is measured")


class StorageSettings(Common):
    """What the storage agent reads; of others, whom it answers, and whose blobs it unpacks."""

    storage: StorageSection = StorageSection()
    image: ImageFacts = ImageFacts()
