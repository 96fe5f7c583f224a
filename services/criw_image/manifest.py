"""What a registry says an image is made of: manifests, indexes and image configurations, OCI and Docker schema 2.

Everything here comes from strangers: sizes are bounded, digests are of algorithms we verify, and a document that could
be read as both a manifest and an index is refused (OCI image-spec manifest.md and image-index.md).
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from pydantic.alias_generators import to_camel

from criw.errors import DataLoss, InvalidArgument, NotFound
from criw_image.reference import is_digest

MANIFEST_LIMIT_BYTES: Final = 4 * 1024 * 1024
CONFIG_LIMIT_BYTES: Final = 8 * 1024 * 1024

_OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_MANIFESTS: Final = frozenset({_OCI_MANIFEST, _DOCKER_MANIFEST})
_INDEXES: Final = frozenset({_OCI_INDEX, _DOCKER_LIST})
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1"  # also with +json and +prettyjws
ACCEPTED: Final = (_OCI_INDEX, _DOCKER_LIST, _OCI_MANIFEST, _DOCKER_MANIFEST)

_CONFIGS: Final = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
_LAYERS: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)

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


def _checked_digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError(f"{text[:100]!r} is not a sha256 or sha512 digest")
    return text


D = TypeVar("D", bound=BaseModel)
Digest = Annotated[str, AfterValidator(_checked_digest)]


class _Document(BaseModel):
    """Part of a JSON document; what it has besides is not ours to judge."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Platform(_Document):
    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(_Document):
    """Where one part of an image is: a digest with the size in bytes."""

    media_type: str
    digest: Digest
    size: NonNegativeInt
    platform: Platform | None = None


class Manifest(_Document):
    """An image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class Index(_Document):
    """Images for several platforms behind one name."""

    manifests: tuple[Descriptor, ...]


class _RootFs(BaseModel):
    diff_ids: tuple[Digest, ...] = ()


class _Settings(BaseModel):
    user: str | None = Field(default=None, alias="User")


class _Config(BaseModel):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    rootfs: _RootFs
    config: _Settings | None = None


@dataclass(frozen=True)
class ImageConfig:
    """What we read of an image's configuration (OCI image-spec config.md). `text` is all of it, as it was hashed."""

    text: str
    platform: Platform
    diff_ids: tuple[str, ...]
    user: str


def digest_of(data: bytes, like: str = "sha256:") -> str:
    """The digest of `data` by the algorithm of the digest `like`."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def machine_platforms(machine: str | None = None) -> list[Platform]:
    """The platforms whose images run on this machine (or one uname calls `machine`), best first."""
    name = machine or platform.machine()
    return [
        Platform(os="linux", architecture=architecture, variant=variant)
        for architecture, variants in _RUNS.get(name, ((name, ("",)),))
        for variant in variants
    ]


def parse_manifest(data: bytes, media_type: str, *, what: str) -> Manifest | Index:
    """The document a registry answered for `what`; `media_type` is its Content-Type, empty if it had none.

    Raises InvalidArgument for what is no container image, DataLoss for a document that contradicts itself.
    """
    document = _json_object(data, what)
    declared = document.get("mediaType")
    kind = declared if isinstance(declared, str) and declared else media_type
    if kind.startswith(_SCHEMA_1) or document.get("schemaVersion") == 1:
        raise InvalidArgument(
            f"cannot pull {what}: it is in Docker's obsolete schema 1; push it again with a tool of today"
        )
    if kind not in _MANIFESTS | _INDEXES:
        kind = _OCI_INDEX if "manifests" in document else _OCI_MANIFEST
    elif media_type in _MANIFESTS | _INDEXES and kind != media_type:
        raise DataLoss(f"cannot pull {what}: the registry calls its manifest {media_type}, the manifest itself {kind}")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise DataLoss(f"cannot pull {what}: its manifest can be read as an image and as an index")
    if kind in _INDEXES:
        return _validated(Index, document, what)
    if "config" not in document:
        raise _artifact(what, document.get("artifactType") or kind)
    manifest = _validated(Manifest, document, what)
    if manifest.config.media_type not in _CONFIGS:
        raise _artifact(what, document.get("artifactType") or manifest.config.media_type)
    for layer in manifest.layers:
        if layer.media_type not in _LAYERS:
            raise InvalidArgument(
                f"cannot pull {what}: its layer {layer.digest} is of type {layer.media_type}; "
                "a layer must be a tar, plain or compressed with gzip or zstd"
            )
    if manifest.config.size > CONFIG_LIMIT_BYTES:
        raise InvalidArgument(f"cannot pull {what}: its configuration is larger than {CONFIG_LIMIT_BYTES} bytes")
    return manifest


def choose(index: Index, *, what: str, runs: Sequence[Platform]) -> Descriptor:
    """The image of the index that fits best. `runs` is `machine_platforms()`. Raises NotFound."""
    for wanted in runs:
        for entry in index.manifests:
            if entry.platform == wanted:
                return entry
    for entry in index.manifests:
        if entry.platform is None:  # its configuration will tell
            return entry
    offered = sorted({str(entry.platform) for entry in index.manifests if entry.platform}) or ["nothing"]
    raise NotFound(f"cannot find an image for {runs[0]} behind {what}: it offers {', '.join(offered)}")


def parse_config(data: bytes, layers: int, *, what: str, runs: Sequence[Platform]) -> ImageConfig:
    """An image's configuration; it must have a diff id for each of `layers`, and run here.

    Raises InvalidArgument, or NotFound for an image of another platform.
    """
    config = _validated(_Config, _json_object(data, what), what)
    found = Platform(os=config.os, architecture=config.architecture, variant=config.variant)
    architectures = {wanted.architecture for wanted in runs}
    if (found.os or "linux") != "linux" or (found.architecture or runs[0].architecture) not in architectures:
        raise NotFound(f"cannot find an image for {runs[0]} behind {what}: it is for {found}")
    if len(config.rootfs.diff_ids) != layers:
        raise InvalidArgument(
            f"cannot pull {what}: its manifest has {layers} layers, its configuration {len(config.rootfs.diff_ids)}"
        )
    return ImageConfig(
        text=data.decode(),
        platform=found,
        diff_ids=config.rootfs.diff_ids,
        user=(config.config.user if config.config else None) or "",
    )


def chain_id(diff_ids: Sequence[str]) -> str:
    """The one name of a stack of layers (OCI image-spec config.md, ChainID); empty without layers."""
    chain = ""
    for diff_id in diff_ids:
        chain = digest_of(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain


def _json_object(data: bytes, what: str) -> dict[str, object]:
    try:
        document = json.loads(data.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as err:
        raise InvalidArgument(f"cannot pull {what}: what the registry answered is not JSON") from err
    if not isinstance(document, dict):
        raise InvalidArgument(f"cannot pull {what}: what the registry answered is not a JSON object")
    return document


def _validated(kind: type[D], document: dict[str, object], what: str) -> D:
    try:
        return kind.model_validate(document)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidArgument(f"cannot pull {what}: {where} of its manifest or configuration: {first['msg']}") from err


def _artifact(what: str, kind: object) -> InvalidArgument:
    return InvalidArgument(f"cannot pull {what}: it is an artifact of type {kind}, not a container image")
