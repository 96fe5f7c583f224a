"""The default configuration, written down with what every key means."""

from pydantic import BaseModel, TypeAdapter

from criw.config.crew import Config


def default_toml() -> str:
    """The default configuration as commented TOML, for `criwctl config default`."""
    lines = ["# Criw's configuration, with every key at its default value."]
    _document(Config(), lines, prefix="")
    return "\n".join(lines) + "\n"


def _document(section: BaseModel, lines: list[str], *, prefix: str) -> None:
    tables: list[tuple[str, BaseModel]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            tables.append((f"{prefix}{name}", value))
        elif isinstance(value, dict) and all(isinstance(item, BaseModel) for item in value.values()):
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
