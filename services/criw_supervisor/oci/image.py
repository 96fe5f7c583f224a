"""What a container takes from its image's configuration (OCI image-spec, config.md)."""

import json
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from criw.errors import Failed

_OrEmpty = BeforeValidator(lambda value: value or ())  # registries are full of `null` where a list belongs
_Keys = BeforeValidator(lambda value: tuple(value) if isinstance(value, dict) else value or ())


def _named(env: tuple[str, ...]) -> tuple[str, ...]:
    """The entries that are variables: builders have left `""` and Windows' `=C:=x` in images."""
    return tuple(entry for entry in env if entry.partition("=")[0])


class ImageConfig(BaseModel):
    """The `config` object of an image's configuration; other keys do not matter to a runtime."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
    entrypoint: Annotated[tuple[str, ...], _OrEmpty] = Field(default=(), alias="Entrypoint")
    cmd: Annotated[tuple[str, ...], _OrEmpty] = Field(default=(), alias="Cmd")
    env: Annotated[tuple[str, ...], _OrEmpty, AfterValidator(_named)] = Field(default=(), alias="Env")
    user: Annotated[str, BeforeValidator(lambda value: value or "")] = Field(default="", alias="User")
    working_dir: Annotated[str, BeforeValidator(lambda value: value or "")] = Field(default="", alias="WorkingDir")
    volumes: Annotated[tuple[str, ...], _Keys] = Field(default=(), alias="Volumes")
    stop_signal: Annotated[str, BeforeValidator(lambda value: value or "")] = Field(default="", alias="StopSignal")


def parse_image_config(raw: bytes, image: str) -> ImageConfig:
    """The runtime's part of an image configuration. Raises Failed if it is not what the specification says."""
    try:
        return ImageConfig.model_validate(json.loads(raw).get("config") or {})
    except (ValueError, AttributeError, RecursionError, ValidationError) as err:
        raise Failed(f"cannot use image {image}: its configuration is malformed: {err}") from err
