"""The configuration of the whole crew."""

import os
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, PositiveFloat, field_validator

from criw.config.common import AgentName, AgentSection, Section
from criw.config.cri import CriSection
from criw.config.image import ImageSection
from criw.config.network import NetworkSection
from criw.config.storage import StorageSection
from criw.config.supervisor import SupervisorSection

_RUN_LIMIT: Final = 80  # a unix socket's path has at most 107: unix(7)


class Config(Section):
    """Everything. `root` survives a reboot, `run` does not."""

    root: Path = Path("/var/lib/criw")
    run: Path = Path("/run/criw")
    group: str = Field(default="", description="group that may use the sockets besides root; empty: root only")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: PositiveFloat = Field(
        default=10, description="how long a stopping process waits for running calls"
    )
    cri: CriSection = CriSection()
    image: ImageSection = ImageSection()
    storage: StorageSection = StorageSection()
    network: NetworkSection = NetworkSection()
    supervisor: SupervisorSection = SupervisorSection()

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

    def agent(self, name: AgentName) -> AgentSection:
        """The section of one process."""
        section: AgentSection = getattr(self, name)
        return section

    def state_dir(self, name: AgentName) -> Path:
        """Where a process keeps what survives a reboot."""
        return self.root / name

    def run_dir(self, name: AgentName) -> Path:
        """Where a process keeps sockets, pins and mounts."""
        return self.run / name

    def socket(self, name: AgentName, instance: int = 0) -> Path:
        """The gRPC socket of a process; the door's is the one the kubelet is given."""
        return self.run / "criw.sock" if name == "cri" else self.run_dir(name) / f"{instance}.sock"

    def http_address(self, name: AgentName, instance: int = 0) -> tuple[str, int]:
        """Host and port of the HTTP endpoint; further instances of an agent use the ports after the first's."""
        host, _, port = self.agent(name).http.rpartition(":")
        return host.strip("[]"), int(port) + instance if int(port) else 0
