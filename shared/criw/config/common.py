"""What the sections of all processes have in common."""

from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

AgentName: TypeAlias = Literal["cri", "image", "storage", "network", "supervisor"]
AGENTS: Final[tuple[AgentName, ...]] = ("storage", "network", "image", "supervisor", "cri")  # in starting order


class Section(BaseModel):
    """Base of all configuration models."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AgentSection(Section):
    """What every process has."""

    http: str = Field(description="host:port of /healthz, /readyz, /metrics and /version; port 0 takes a free one")

    @field_validator("http")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not (host and colon and port.isdecimal() and int(port) < 65536):
            raise ValueError("must be host:port, for example 127.0.0.1:9470")
        return value
