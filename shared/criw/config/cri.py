"""The door's part of the configuration."""

from criw.config.common import FIRST_ID, Common, Facts, User


class CriFacts(Facts):
    """What others may know of the door."""

    user: User = FIRST_ID
    http: str = "127.0.0.1:9470"


class CriSection(CriFacts, extra="forbid"):
    """The door."""


class CriSettings(Common):
    """What the door reads."""

    cri: CriSection = CriSection()
