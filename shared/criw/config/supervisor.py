"""The supervisor's part of the configuration."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from criw.config.common import Common, Facts, Section
from criw.config.cri import CriFacts


class Runtime(Section):
    """An OCI runtime handler."""

    path: Path = Field(description="the program, or a name looked up on PATH")
    args: tuple[str, ...] = Field(default=(), description="global arguments put before every command")


class SupervisorFacts(Facts):
    """What others may know of the supervisor."""

    user: Literal[0] = Field(default=0, description="it must be root")
    http: str = "127.0.0.1:9474"


class SupervisorSection(SupervisorFacts, extra="forbid"):
    """The supervisor."""

    conmon: Path = Path("conmon")
    runtimes: dict[str, Runtime] = Field(
        default_factory=lambda: {"runc": Runtime(path=Path("runc")), "crun": Runtime(path=Path("crun"))},
        description="runtime handlers by name; each is probed at start",
    )
    default_runtime: str = Field(default="", description="a handler's name; empty: the first that works")
    cgroup_parent: str = Field(default="/criw", description="cgroup of pods whose request names none")
    pids_limit: int = Field(default=0, ge=0, description="processes and threads a container may have; 0: no limit")
    exec_output_limit_bytes: PositiveInt = 16 * 1024 * 1024

    @field_validator("cgroup_parent")
    @classmethod
    def _cgroup(cls, value: str) -> str:
        if not value.startswith("/") or not value.strip("/") or ".." in value.split("/"):
            raise ValueError("must be the path of a cgroup below the root, begin with / and have no ..")
        return value

    @field_validator("default_runtime")
    @classmethod
    def _known(cls, value: str, others: ValidationInfo) -> str:
        known = others.data.get("runtimes", {value: None})  # not there if it is wrong itself
        if value and value not in known:
            raise ValueError(f"there is no runtime {value}; configured are {', '.join(known)}")
        return value


class SupervisorSettings(Common):
    """What the supervisor reads; of others, whom it answers."""

    supervisor: SupervisorSection = SupervisorSection()
    cri: CriFacts = CriFacts()
