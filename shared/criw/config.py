"""The configuration of the whole crew: one TOML file, drop-ins and environment variables, read once at start.

`criw.toml` comes first, then the files of `conf.d/*.toml` beside it by name, then `CRIW_…` variables: `CRIW_ROOT` for
a key of the top level, `CRIW_NETWORK_BRIDGE` for `bridge` in `[network]`. Later ones win. An unknown key is refused
by name: no process starts with a half-understood configuration.
"""

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from criw.errors import InvalidArgument

DEFAULT_PATH: Final = Path("/etc/criw/criw.toml")
AgentName: TypeAlias = Literal["cri", "image", "storage", "network", "supervisor"]
AGENTS: Final[tuple[AgentName, ...]] = ("storage", "network", "image", "supervisor", "cri")  # in starting order
_ENV_PREFIX: Final = "CRIW_"
_RUN_LIMIT: Final = 80  # a unix socket's path has at most 107: unix(7)
_NOT_KEYS: Final = frozenset({"CRIW_CONFIG"})


class Section(BaseModel):
    """Base of all configuration models."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    return path


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


class CriSection(AgentSection):
    """The door."""

    http: str = "127.0.0.1:9470"


class Registry(Section):
    """How one registry is reached."""

    mirrors: tuple[str, ...] = Field(
        default=(), description="base URLs tried in order before the registry itself, for example http://127.0.0.1:5000"
    )
    plain_http: bool = Field(default=False, description="speak HTTP instead of HTTPS to the registry itself")
    ca_file: Path | None = Field(
        default=None, description="PEM file with the authorities to trust besides the system's"
    )
    username: str = Field(default="", description="used when a pull request brings no credentials")
    password: str = ""

    @field_validator("mirrors")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} must begin with http:// or https://")
        return value


class ImageSection(AgentSection):
    """The image agent."""

    http: str = "127.0.0.1:9471"
    registries: dict[str, Registry] = Field(
        default_factory=dict, description='by registry host (and port); "*" stands for every host not listed'
    )
    parallel_downloads: PositiveInt = Field(default=4, description="layers of one image downloaded at once")
    stall_timeout_s: PositiveFloat = Field(
        default=60, description="a connection that moves no byte for so long is given up"
    )


class StorageSection(AgentSection):
    """The storage agent."""

    http: str = "127.0.0.1:9472"
    unpack_workers: PositiveInt = Field(default=2, description="layers unpacked at once")
    usage_interval_s: PositiveFloat = Field(default=10, description="how often disk usage is measured")


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


class Runtime(Section):
    """An OCI runtime handler."""

    path: Path = Field(description="the program, or a name looked up on PATH")
    args: tuple[str, ...] = Field(default=(), description="global arguments put before every command")


class SupervisorSection(AgentSection):
    """The supervisor."""

    http: str = "127.0.0.1:9474"
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
        return _absolute(value)

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


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration: `path`, else `CRIW_CONFIG`, else /etc/criw/criw.toml if it is there, else defaults.

    Raises InvalidArgument naming file and key for whatever is wrong.
    """
    named = path or (Path(environ["CRIW_CONFIG"]) if environ.get("CRIW_CONFIG") else None)
    main = named or DEFAULT_PATH
    tree: dict[str, object] = {}
    if named is not None or main.exists():
        _merge(tree, _read(main))
    for drop_in in sorted((main.parent / "conf.d").glob("*.toml")):
        _merge(tree, _read(drop_in))
    _merge(tree, _from_environment(environ))
    try:
        return Config.model_validate(tree)
    except ValidationError as err:
        problems = "; ".join(_problem(list(e["loc"]), e["type"], e["msg"]) for e in err.errors())
        raise InvalidArgument(
            f"cannot use the configuration (from {main}, its conf.d and CRIW_ variables): {problems}"
        ) from err


def _problem(location: list[int | str], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"unknown key {key}"
    return f"{key}: {message.removeprefix('Value error, ')}"


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise InvalidArgument(f"cannot read the configuration {path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise InvalidArgument(f"cannot read the configuration {path}: {err}") from err


def _merge(into: dict[str, object], other: Mapping[str, object]) -> None:
    for key, value in other.items():
        here = into.get(key)
        if isinstance(here, dict) and isinstance(value, dict):
            _merge(here, value)
        else:
            into[key] = value


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    tree: dict[str, object] = {}
    for name, text in environ.items():
        if not name.startswith(_ENV_PREFIX) or name in _NOT_KEYS:
            continue
        key = name.removeprefix(_ENV_PREFIX).lower()
        section, _, rest = key.partition("_")
        if section in AGENTS and rest:
            _merge(tree, {section: {rest: _value(text)}})
        else:
            _merge(tree, {key: _value(text)})
    return tree


def _value(text: str) -> object:
    """A variable's value: TOML where it is TOML (numbers, booleans, arrays, tables), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def default_toml() -> str:
    """The default configuration as commented TOML, for `criwctl config default`."""
    lines = ["# Criw's configuration, with every key at its default value."]
    _document(Config(), lines, prefix="")
    return "\n".join(lines) + "\n"


def _document(section: Section, lines: list[str], *, prefix: str) -> None:
    tables: list[tuple[str, Section]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            tables.append((f"{prefix}{name}", value))
        elif isinstance(value, dict) and all(isinstance(item, Section) for item in value.values()):
            if field.description:
                lines.append(f"# {prefix}{name}: {field.description}")
            tables.extend((f"{prefix}{name}.{key}", item) for key, item in value.items())
        elif value is None:
            lines.append(f'# {name} = ""  # {field.description or ""}'.rstrip())
        else:
            comment = f"  # {field.description}" if field.description else ""
            lines.append(f"{name} = {_toml(value)}{comment}")
    for name, table in tables:
        lines += ["", f"[{name}]"]
        _document(table, lines, prefix=f"{name}.")


def _toml(value: object) -> str:
    # TOML's scalars and arrays are written as JSON writes them.
    return TypeAdapter(type(value)).dump_json(value).decode()
