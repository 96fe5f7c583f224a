"""The image agent's part of the configuration."""

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from criw.config.common import FIRST_ID, Common, Facts, Section, User
from criw.config.cri import CriFacts


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


class ImageFacts(Facts):
    """What others may know of the image agent."""

    user: User = FIRST_ID + 1
    http: str = "127.0.0.1:9471"


class ImageSection(ImageFacts, extra="forbid"):
    """The image agent."""

    registries: dict[str, Registry] = Field(
        default_factory=dict,
        description='by registry host (and port); "*" stands for every host not listed, and has no credentials',
    )
    parallel_downloads: PositiveInt = Field(default=4, description="layers of one image downloaded at once")
    stall_timeout_s: PositiveFloat = Field(
        default=60, description="a connection that brings less than 1 KiB a second over so long is given up"
    )

    @field_validator("registries")
    @classmethod
    def _credentials_for_one(cls, value: dict[str, Registry]) -> dict[str, Registry]:
        others = value.get("*", Registry())
        if others.username or others.password:
            raise ValueError('"*" may have no username and password: they would go to every registry that asks')
        return value


class ImageSettings(Common):
    """What the image agent reads; of others, whom it answers."""

    image: ImageSection = ImageSection()
    cri: CriFacts = CriFacts()
