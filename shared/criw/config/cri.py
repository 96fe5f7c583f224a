"""The door's part of the configuration."""

from criw.config.common import Common, Facts


class CriFacts(Facts):
    """What others may know of the door."""

    http: str = "127.0.0.1:9470"


class CriSection(CriFacts, extra="forbid"):
    """The door."""


class CriSettings(Common):
    """What the door reads."""

    cri: CriSection = CriSection()
