"""How the configuration is read: one TOML file, drop-ins and environment variables, once at start.

`criw.toml` comes first, then the files of `conf.d/*.toml` beside it by name, then `CRIW_…` variables: `CRIW_ROOT` for
a key of the top level, `CRIW_NETWORK_BRIDGE` for `bridge` in `[network]`. Later ones win. An unknown key is refused
by name: no process starts with a half-understood configuration. But a process reads the top level and its own section
only, so that another can be upgraded, with new keys, while this one stays as it is.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from criw.config.common import AGENTS, Common
from criw.errors import InvalidArgument

DEFAULT_PATH: Final = Path("/etc/criw/criw.toml")
_ENV_PREFIX: Final = "CRIW_"
_NOT_KEYS: Final = frozenset({"CRIW_CONFIG"})

C = TypeVar("C", bound=Common)


def load(model: type[C], path: Path | None = None, environ: Mapping[str, str] = os.environ) -> C:
    """Read the top level and the sections that `model` has.

    From `path`, else `CRIW_CONFIG`, else /etc/criw/criw.toml if it is there, else defaults.

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
        return model.model_validate({key: tree[key] for key in tree if key in model.model_fields or key not in AGENTS})
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
