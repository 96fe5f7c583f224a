"""The network agent's section."""

import ipaddress
from typing import Annotated

from pydantic import Field, field_validator

from criw.config.common import AgentSection


class NetworkSection(AgentSection):
    """The network agent."""

    http: str = "127.0.0.1:9473"
    bridge: str = Field(default="criw0", min_length=1, max_length=11, pattern=r"^[a-z][a-z0-9]*$")
    pod_cidrs: tuple[str, ...] = Field(default=("10.88.0.0/16",), description="one IPv4 and/or one IPv6 range")
    mtu: Annotated[int, Field(ge=576, le=65535)] = 1500

    @field_validator("pod_cidrs")
    @classmethod
    def _cidrs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        families = [ipaddress.ip_network(cidr).version for cidr in value]
        if len(set(families)) != len(families):
            raise ValueError("at most one range of each family")
        return value
