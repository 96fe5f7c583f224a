"""For which machines an image is (OCI image-spec image-index.md, platform), and which of them are like this one.

Tools have written `x86_64`, `Linux`, `arm64` with or without `v8`, or nothing at all: names are compared as Go knows
them.
"""

import platform
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, model_validator

# What runs on a machine, best first, as (architecture, variants) in Go's words, by what uname(2) calls the machine.
_ARM_32: Final = (("arm", ("v8", "v7", "", "v6", "v5")),)
_RUNS: Final = {
    "x86_64": (("amd64", ("", "v1")), ("386", ("",))),
    "aarch64": (("arm64", ("", "v8")), *_ARM_32),
    "armv7l": (("arm", ("v7", "", "v6", "v5")),),
    "armv6l": (("arm", ("v6", "", "v5")),),
    "i686": (("386", ("",)),),
    "loongarch64": (("loong64", ("",)),),
}
_ARCHITECTURES: Final = {"x86_64": "amd64", "x86-64": "amd64", "i386": "386", "i686": "386", "aarch64": "arm64"}
_ARM_NAMES: Final = {"armhf": "v7", "armv7l": "v7", "armel": "v6", "armv6l": "v6"}


class Platform(BaseModel):
    """As Go writes it; empty fields are not known."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architecture: str = ""
    os: str = ""
    variant: str = ""

    @model_validator(mode="before")
    @classmethod
    def _as_go_writes_it(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        found = {name: value.get(name) for name in cls.model_fields}
        known = {name: text.strip().lower() if isinstance(text, str) else text for name, text in found.items()}
        architecture, variant = known["architecture"], known["variant"]
        if isinstance(architecture, str):
            known["architecture"] = (
                "arm" if architecture in _ARM_NAMES else _ARCHITECTURES.get(architecture, architecture)
            )
            variant = variant or _ARM_NAMES.get(architecture)
        if isinstance(variant, str) and variant.isdecimal():
            variant = f"v{variant}"
        return {name: text for name, text in (known | {"variant": variant}).items() if text is not None}

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def may_be(self, runs: Sequence["Platform"]) -> bool:
        """Whether it leaves open if it is one of those that run here: then the image's configuration tells."""
        if self.os and self.architecture:
            return False
        return self.os in {"", "linux"} and self.architecture in {"", *(one.architecture for one in runs)}


def machine_platforms(machine: str | None = None) -> list[Platform]:
    """The platforms whose images run on this machine (or one uname calls `machine`), best first."""
    name = machine or platform.machine()
    return [
        Platform(os="linux", architecture=architecture, variant=variant)
        for architecture, variants in _RUNS.get(name, ((name, ("",)),))
        for variant in variants
    ]
