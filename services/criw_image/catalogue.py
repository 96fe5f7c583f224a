"""The images of this node and their names.

An image has one identity, the digest of its configuration, and any number of tags and digests. The store is the truth,
shared by all instances of the agent; here is what was read of it last, read again when it changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from criw.errors import InvalidArgument, NotFound
from criw.ids import resolve
from criw.store import Record, Store
from criw_image.claims import Claims
from criw_image.reference import Reference, parse_reference
from criw_proto.runtime.v1 import Image, ImageSpec, Int64Value, ListImagesResponse

_NAMES_CLAIM: Final = "names"
_UID_DIGITS: Final = 18  # an int64 holds that many for sure


class ImageRecord(Record):
    """One image. `id` is the digest of its configuration; `size_bytes` is what it needs on disk."""

    kind: ClassVar[str] = "image"
    version: Literal[1] = 1
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size_bytes: int
    diff_ids: tuple[str, ...]
    user: str


class DocumentsRecord(Record):
    """The documents of the image of the same id, as they were hashed."""

    kind: ClassVar[str] = "documents"
    version: Literal[1] = 1
    config: str
    manifest: str


class UnfinishedRecord(Record):
    """A pull of the image of this id that was begun: blobs and layers of it may be there."""

    kind: ClassVar[str] = "unfinished"
    version: Literal[1] = 1


@dataclass(frozen=True)
class Snapshot:
    """All images at one moment. `listing` is the serialised answer of ListImages."""

    images: dict[str, ImageRecord]
    by_name: dict[str, str]
    listing: bytes

    def find(self, text: str) -> ImageRecord | None:
        """The image an id (with or without `sha256:`), a unique beginning of one, or a name stands for.

        Raises NotFound if it is the beginning of more than one id.
        """
        if text in self.images:
            return self.images[text]
        if (named := self.by_name.get(_full_name(text))) is not None:
            return self.images[named]
        digits = text.partition(":")[2] if text.startswith(("sha256:", "sha512:")) else text
        ids = {image_id.partition(":")[2]: image_id for image_id in self.images}
        if not digits or not any(candidate.startswith(digits) for candidate in ids):
            return None
        return self.images[ids[resolve(digits, ids, what="image")]]


def _full_name(text: str) -> str:
    try:
        return str(parse_reference(text))
    except InvalidArgument:
        return ""  # it may still be an id; no image has this name


class Catalogue:
    """Reads and changes the records. All changes of names are made under one claim."""

    def __init__(self, store: Store, claims: Claims) -> None:
        self._store = store
        self._claims = claims
        self._version: tuple[int, int] | None = None
        self._snapshot = Snapshot({}, {}, b"")

    async def snapshot(self) -> Snapshot:
        """The images now."""
        version = await self._store.version()
        if version != self._version:
            # The version is older than what is read, never newer: at worst it is read once more.
            self._snapshot = _snapshot(await self._store.all(ImageRecord))
            self._version = version
        return self._snapshot

    @property
    def count(self) -> int:
        """How many images there were when it was read last."""
        return len(self._snapshot.images)

    async def find(self, text: str) -> ImageRecord | None:
        """See `Snapshot.find`."""
        return (await self.snapshot()).find(text)

    async def get(self, text: str) -> ImageRecord:
        """As `find`, but raises NotFound."""
        if (record := await self.find(text)) is None:
            raise NotFound(f"cannot find image {text}: it is not on this node; pull it first")
        return record

    async def documents(self, image_id: str) -> DocumentsRecord:
        """The configuration and the manifest. Raises NotFound if the image has been removed meanwhile."""
        if (documents := await self._store.get(DocumentsRecord, image_id)) is None:
            raise NotFound(f"cannot find image {image_id}: it has just been removed; pull it again")
        return documents

    async def unfinished(self) -> list[str]:
        """Ids of the images whose pull has begun and is not known to have ended."""
        return [record.id for record in await self._store.all(UnfinishedRecord)]

    async def begin(self, image_id: str) -> None:
        """Record that a pull begins. An image of this id that was there is forgotten: it turned out to be damaged."""
        async with self._claims.hold(_NAMES_CLAIM):
            await self._store.commit(put=[UnfinishedRecord(id=image_id)], delete=await self._records_of(image_id))

    async def finish(self, record: ImageRecord, documents: DocumentsRecord, reference: Reference, digest: str) -> None:
        """Record a pulled image under the name it was pulled by, and that its pull has ended."""
        async with self._claims.hold(_NAMES_CLAIM):
            images = await self._store.all(ImageRecord)
            others = [one for one in images if one.id != record.id]
            changed = named([*others, record], record.id, reference, digest)
            await self._store.commit(put=[*changed, documents], delete=[UnfinishedRecord(id=record.id)])

    async def abandon(self, image_id: str) -> None:
        """Record that nothing is left of a pull, or of an image."""
        async with self._claims.hold(_NAMES_CLAIM):
            gone = [*await self._records_of(image_id), UnfinishedRecord(id=image_id)]
            await self._store.commit(delete=gone)

    async def name(self, image_id: str, reference: Reference, digest: str) -> None:
        """Give an image that is here one more name. Raises NotFound if it has been removed meanwhile."""
        async with self._claims.hold(_NAMES_CLAIM):
            images = await self._store.all(ImageRecord)
            if all(record.id != image_id for record in images):
                raise NotFound(f"cannot name image {image_id} {reference}: it has just been removed; pull it again")
            changed = named(images, image_id, reference, digest)
            if any(record not in images for record in changed):
                await self._store.commit(put=changed)

    async def _records_of(self, image_id: str) -> list[Record]:
        record = await self._store.get(ImageRecord, image_id)
        documents = await self._store.get(DocumentsRecord, image_id)
        return [one for one in (record, documents) if one is not None]


def named(images: Sequence[ImageRecord], image_id: str, reference: Reference, digest: str) -> list[ImageRecord]:
    """The image with the name `reference` and the digest the registry knows it by, and those that lose their tag to it.

    An image that loses its tag keeps its digests.
    """
    tag = "" if reference.digest else str(reference)
    full_digest = f"{reference.name}@{digest}"
    changed = []
    for record in images:
        if record.id == image_id:
            tags = {*record.tags, tag} - {""}
            new = {"tags": tuple(sorted(tags)), "digests": tuple(sorted({*record.digests, full_digest}))}
            changed.append(record.model_copy(update=new))
        elif tag in record.tags:
            changed.append(record.model_copy(update={"tags": tuple(one for one in record.tags if one != tag)}))
    return changed


def _snapshot(records: Sequence[ImageRecord]) -> Snapshot:
    by_name = {name: record.id for record in records for name in (*record.tags, *record.digests)}
    listing = bytes(ListImagesResponse(images=[cri_image(record) for record in records]))
    return Snapshot({record.id: record for record in records}, by_name, listing)


def cri_image(record: ImageRecord) -> Image:
    """The CRI's form of an image."""
    user = record.user.partition(":")[0]
    numeric = user.isdecimal() and user.isascii() and len(user) <= _UID_DIGITS
    name = next(iter((*record.tags, *record.digests)), record.id)
    return Image(
        id=record.id,
        repo_tags=list(record.tags),
        repo_digests=list(record.digests),
        size=record.size_bytes,
        uid=Int64Value(value=int(user)) if numeric else None,
        username="" if numeric else user,
        spec=ImageSpec(image=name),
    )
