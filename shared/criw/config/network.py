"""The network agent's part of the configuration."""

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, field_validator

from criw.config.common import Common, Facts
from criw.config.cri import CriFacts


class NetworkFacts(Facts):
    """What others may know of the network agent."""

    user: Literal[0] = Field(default=0, description="it must be root")
    http: str = "127.0.0.1:9473"


class NetworkSection(NetworkFacts, extra="forbid"):
    """The network agent."""

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


class NetworkSettings(Common):
    """What the network agent reads; of others, whom it answers."""

    network: NetworkSection = NetworkSection()
    cri: CriFacts = CriFacts()
