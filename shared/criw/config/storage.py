"""The storage agent's section."""

from pydantic import Field, PositiveFloat, PositiveInt

from criw.config.common import AgentSection


class StorageSection(AgentSection):
    """The storage agent."""

    http: str = "127.0.0.1:9472"
    unpack_workers: PositiveInt = Field(default=2, description="layers unpacked at once")
    usage_interval_s: PositiveFloat = Field(default=10, description="how often disk usage is measured")
