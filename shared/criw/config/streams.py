"""The streams process's part of the configuration."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from criw.config.common import Common, Facts


class StreamsFacts(Facts):
    """What others may know of the streams process."""

    user: Literal[0] = Field(default=0, description="it must be root")
    http: str = "127.0.0.1:9475"


class StreamsSection(StreamsFacts, extra="forbid"):
    """The streams process."""

    listen: str = Field(
        default="127.0.0.1:0",
        description="host:port of the URLs of exec, attach and port-forward; port 0 takes a free one",
    )
    tls_cert: str = Field(default="", description="file with PEM certificates, for https; empty: http")
    tls_key: str = Field(default="", description="file with the PEM key of tls_cert")
    idle_timeout_s: PositiveFloat = Field(default=4 * 3600, description="a session on which nothing comes or goes ends")

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        return cls._host_and_port(value)

    @model_validator(mode="after")
    def _both(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key go together")
        return self

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class StreamsSettings(Common):
    """What the streams process reads."""

    streams: StreamsSection = StreamsSection()
