"""The door's section."""

from criw.config.common import AgentSection


class CriSection(AgentSection):
    """The door."""

    http: str = "127.0.0.1:9470"
