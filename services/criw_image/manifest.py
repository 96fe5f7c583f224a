"""What a registry says an image is made of: manifests, indexes and image configurations, OCI and Docker schema 2.

Everything here comes from strangers: sizes are bounded, digests are of algorithms we verify, media types are ones we
know, and a document that could be read as both a manifest and an index is refused (OCI image-spec manifest.md and
image-index.md).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from criw.errors import DataLoss, InvalidArgument, NotFound
from criw_image.foreign import cleaned, json_object
from criw_image.platforms import Platform
from criw_image.reference import is_digest

MANIFEST_LIMIT_BYTES: Final = 4 * 1024 * 1024
CONFIG_LIMIT_BYTES: Final = 8 * 1024 * 1024
_CANDIDATES: Final = 16  # of an index, into whose configurations we look for their platform
_OFFERED: Final = 20  # platforms named in a message

_OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_MANIFESTS: Final = frozenset({_OCI_MANIFEST, _DOCKER_MANIFEST})
_INDEXES: Final = frozenset({_OCI_INDEX, _DOCKER_LIST})
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1"  # also with +json and +prettyjws
ACCEPTED: Final = (_OCI_INDEX, _DOCKER_LIST, _OCI_MANIFEST, _DOCKER_MANIFEST)

_OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_CONFIGS: Final = frozenset({_OCI_CONFIG, "application/vnd.docker.container.image.v1+json"})
# What Docker and registries have called the configuration of a schema 2 image (distribution#1621, moby#48361).
_DOCKER_CONFIGS: Final = _CONFIGS | {"", "application/octet-stream", "application/json", "text/html"}
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


def _checked_digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError(f"{text[:100]!r} is not a sha256 or sha512 digest")
    return text


D = TypeVar("D", bound=BaseModel)
Digest = Annotated[str, AfterValidator(_checked_digest)]
Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Document(BaseModel):
    """Part of a JSON document; what it has besides is not ours to judge, and null is nothing (image-spec#1013)."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value


class Descriptor(_Document):
    """Where one part of an image is: a digest with the size in bytes."""

    media_type: str = ""
    digest: Digest
    size: Size


class Manifest(_Document):
    """An image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...] = ()


class Index(_Document):
    """Images for several platforms behind one name. An entry is read when it is chosen: the others never matter."""

    manifests: tuple[object, ...] = ()


class _Entry(_Document):
    """What an entry of an index is chosen by."""

    media_type: str = ""
    platform: Platform = Platform()


class _RootFs(_Document):
    diff_ids: tuple[Digest, ...] = Field(default=(), alias="diff_ids")


class _Settings(_Document):
    user: str = Field(default="", alias="User")


class _Config(_Document):
    rootfs: _RootFs = _RootFs()
    config: _Settings = _Settings()


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


def parse_manifest(data: bytes, media_type: str, *, what: str) -> Manifest | Index:
    """The document a registry answered for `what`; `media_type` is its Content-Type, empty if it had none.

    Raises InvalidArgument for what is no container image, DataLoss for a document that contradicts itself.
    """
    document = _object(data, what)
    kind = _kind(document, media_type, what)
    if "manifests" in document and ("layers" in document or "config" in document):
        raise DataLoss(f"cannot pull {what}: its manifest can be read as an image and as an index")
    if kind in _INDEXES:
        return _validated(Index, document, what)
    if "config" not in document:
        raise _artifact(what, document.get("artifactType") or kind)
    manifest = _validated(Manifest, document, what)
    if manifest.config.media_type not in (_DOCKER_CONFIGS if kind == _DOCKER_MANIFEST else _CONFIGS):
        raise _artifact(what, document.get("artifactType") or manifest.config.media_type or "unknown")
    for layer in manifest.layers:
        if layer.media_type not in _LAYERS:
            raise InvalidArgument(
                f"cannot pull {what}: its layer {layer.digest} is of type {cleaned(layer.media_type) or 'unknown'}; "
                "a layer must be a tar, plain or compressed with gzip or zstd"
            )
    if manifest.config.size > CONFIG_LIMIT_BYTES:
        raise InvalidArgument(f"cannot pull {what}: its configuration is larger than {CONFIG_LIMIT_BYTES} bytes")
    return manifest


def _kind(document: Mapping[str, object], media_type: str, what: str) -> str:
    """The media type by which a document is read: its own word, else the registry's, else what it looks like."""
    declared = document.get("mediaType")
    kind = declared if isinstance(declared, str) and declared else media_type
    if kind.startswith(_SCHEMA_1) or document.get("schemaVersion") == 1:
        raise InvalidArgument(
            f"cannot pull {what}: it is in Docker's obsolete schema 1; push it again with a tool of today"
        )
    if kind in _MANIFESTS | _INDEXES:
        if media_type in _MANIFESTS | _INDEXES and kind != media_type:
            raise DataLoss(
                f"cannot pull {what}: the registry calls its manifest {media_type}, the manifest itself {kind}"
            )
        return kind
    if declared or kind.startswith("application/vnd."):  # not one of the words registries have for "some file"
        raise _artifact(what, document.get("artifactType") or declared or kind)
    return _OCI_INDEX if "manifests" in document else _OCI_MANIFEST


def choose(index: Index, *, what: str, runs: Sequence[Platform]) -> list[Descriptor]:
    """The image of the index that fits best, or those that may fit. `runs` is `machine_platforms()`.

    Raises NotFound, InvalidArgument for an entry that fits and cannot be read.
    """
    entries = [(entry, raw) for raw in index.manifests if (entry := _entry(raw)) is not None]
    for wanted in runs:
        for entry, raw in entries:
            if entry.platform == wanted:
                return [_validated(Descriptor, raw, what)]
    if candidates := [raw for entry, raw in entries if entry.platform.may_be(runs)]:
        return [_validated(Descriptor, raw, what) for raw in candidates[:_CANDIDATES]]
    offered = sorted({str(entry.platform) for entry, _ in entries})[:_OFFERED] or ["nothing"]
    raise NotFound(
        f"cannot find an image for {runs[0]} behind {what}: it offers {cleaned(', '.join(offered), limit=1000)}"
    )


def _entry(raw: object) -> _Entry | None:
    """None for one that is no image of anybody's."""
    try:
        entry = _Entry.model_validate(raw)
    except ValidationError:
        return None
    return entry if entry.media_type in _MANIFESTS | _INDEXES | {""} else None


def parse_config(data: bytes, layers: int, *, what: str, runs: Sequence[Platform]) -> ImageConfig:
    """An image's configuration; it must have a diff id for each of `layers`, and run here.

    Raises InvalidArgument, or NotFound for an image of another platform.
    """
    document = _object(data, what)
    config, found = _validated(_Config, document, what), _validated(Platform, document, what)
    architectures = {wanted.architecture for wanted in runs}
    if (found.os or "linux") != "linux" or (found.architecture or runs[0].architecture) not in architectures:
        raise NotFound(f"cannot find an image for {runs[0]} behind {what}: it is for {cleaned(found)}")
    if len(config.rootfs.diff_ids) != layers:
        raise InvalidArgument(
            f"cannot pull {what}: its manifest has {layers} layers, its configuration {len(config.rootfs.diff_ids)}"
        )
    return ImageConfig(
        text=data.decode(), platform=found, diff_ids=config.rootfs.diff_ids, user=cleaned(config.config.user)
    )


def chain_id(diff_ids: Sequence[str]) -> str:
    """The one name of a stack of layers (OCI image-spec config.md, ChainID); empty without layers."""
    chain = ""
    for diff_id in diff_ids:
        chain = digest_of(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain


def _object(data: bytes, what: str) -> dict[str, object]:
    try:
        return json_object(data)
    except ValueError as err:
        raise InvalidArgument(f"cannot pull {what}: what the registry answered is not JSON that can be used") from err


def _validated(kind: type[D], document: object, what: str) -> D:
    try:
        return kind.model_validate(document)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = cleaned(f"{where} of its manifest or configuration: {first['msg']}")
        raise InvalidArgument(f"cannot pull {what}: {problem}") from err


def _artifact(what: str, kind: object) -> InvalidArgument:
    return InvalidArgument(f"cannot pull {what}: it is an artifact of type {cleaned(kind)}, not a container image")
