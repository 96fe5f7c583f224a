"""What every process reads: the keys of the top level, and how sections are made."""

import os
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator

AgentName: TypeAlias = Literal["cri", "image", "storage", "network", "streams", "supervisor"]
# In starting order.
AGENTS: Final[tuple[AgentName, ...]] = ("storage", "network", "image", "streams", "supervisor", "cri")
# Numbers that neither Debian (policy 9.2.2: 65000 to 65533 are reserved) nor systemd (UIDS-GIDS: 61184 to 65519 are for
# dynamic users) gives to anybody, and that no user namespace is given either; those begin at 65536.
FIRST_ID: Final = 65520
User: TypeAlias = Annotated[
    int, Field(ge=0, lt=2**32 - 1, description="uid it runs as when root starts it; it needs no account")
]
_RUN_LIMIT: Final = 80  # a unix socket's path has at most 107: unix(7)


class Section(BaseModel):
    """Keys of which an unknown one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Facts(BaseModel):
    """What other processes may know of a process's section.

    They pass over its other keys: a process can be upgraded alone, and then has keys they do not know.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    user: User
    http: str = Field(description="host:port of /healthz, /readyz, /metrics and /version; port 0 takes a free one")

    @field_validator("http")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not (host and colon and port.isdecimal() and int(port) < 65536):
            raise ValueError("must be host:port, for example 127.0.0.1:9470")
        return value

    def address(self, instance: int = 0) -> tuple[str, int]:
        """Host and port of the HTTP endpoint; further instances of an agent use the ports after the first's."""
        host, _, port = self.http.rpartition(":")
        return host.strip("[]"), int(port) + instance if int(port) else 0


class Common(Section):
    """The keys of the top level. `root` survives a reboot, `run` does not."""

    root: Path = Path("/var/lib/criw")
    run: Path = Path("/run/criw")
    group: str = Field(default="", description="group that may use the crew's socket besides root; empty: root only")
    crew_gid: Annotated[int, Field(gt=0, lt=2**32 - 1)] = Field(
        default=FIRST_ID, description="gid that the crew's processes share, so that they reach each other's sockets"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: PositiveFloat = Field(
        default=10, description="how long a stopping process waits for running calls"
    )

    @field_validator("root", "run")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"{value} is not an absolute path")
        return value

    @field_validator("run")
    @classmethod
    def _short(cls, value: Path) -> Path:
        if len(os.fsencode(value)) > _RUN_LIMIT:
            raise ValueError(f"is longer than {_RUN_LIMIT} bytes, so that sockets in it could not be opened")
        return value

    def state_dir(self, name: AgentName) -> Path:
        """Where a process keeps what survives a reboot."""
        return self.root / name

    @property
    def blobs(self) -> Path:
        """Where the image agent keeps the blobs that it names to the storage agent."""
        return self.state_dir("image") / "blobs"

    def run_dir(self, name: AgentName) -> Path:
        """Where a process keeps sockets, pins and mounts."""
        return self.run / name

    def socket(self, name: AgentName, instance: int = 0) -> Path:
        """The gRPC socket of a process; the door's is the one the kubelet is given."""
        return self.run / "criw.sock" if name == "cri" else self.run_dir(name) / f"{instance}.sock"

    def facts(self, name: AgentName) -> Facts:
        """Of the section of a process, which must be among those read."""
        section = getattr(self, name)
        assert isinstance(section, Facts)
        return section
