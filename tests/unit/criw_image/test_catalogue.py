"""Images and their names."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.errors import NotFound
from criw.store import open_store
from criw_image.catalogue import Catalogue, DocumentsRecord, ImageRecord, cri_image, named
from criw_image.claims import Claims
from criw_image.reference import parse_reference
from criw_proto.runtime.v1 import Image, ListImagesResponse

A, B, AB = (f"sha256:{text * 64}"[:71] for text in ("a", "b", "ab"))
DIGEST, OTHER_DIGEST = (f"sha256:{text * 64}" for text in ("d", "e"))


def record(image_id: str, **fields: object) -> ImageRecord:
    return ImageRecord.model_validate({"id": image_id, "size_bytes": 1, "diff_ids": (), "user": ""} | fields)


def documents(image_id: str) -> DocumentsRecord:
    return DocumentsRecord(id=image_id, config="{}", manifest="{}")


@pytest_asyncio.fixture
async def catalogue(tmp_path: Path) -> AsyncIterator[Catalogue]:
    async with open_store(tmp_path / "image.db") as store:
        yield Catalogue(store, Claims(tmp_path))


async def add(catalogue: Catalogue, image_id: str, name: str, digest: str = DIGEST) -> None:
    await catalogue.begin(image_id)
    await catalogue.finish(record(image_id), documents(image_id), parse_reference(name), digest)


@pytest.mark.parametrize(
    "text",
    [
        A,
        "a" * 64,
        "aaa",
        "sha256:aaa",
        "busybox",
        "busybox:latest",
        "docker.io/library/busybox",
        f"busybox@{DIGEST}",
        f"busybox:whatever@{DIGEST}",
    ],
)
async def test_an_image_is_found_by_all_it_is_called(catalogue: Catalogue, text: str) -> None:
    await add(catalogue, A, "busybox")
    await add(catalogue, B, "quay.io/other", OTHER_DIGEST)
    assert (await catalogue.get(text)).id == A


@pytest.mark.parametrize("text", ["c", "sha256:", "busybox:1", "quay.io/busybox", f"busybox@{OTHER_DIGEST}", "", "a b"])
async def test_what_is_not_there_is_not_found(catalogue: Catalogue, text: str) -> None:
    await add(catalogue, A, "busybox")
    assert await catalogue.find(text) is None
    with pytest.raises(NotFound, match="cannot find image"):
        await catalogue.get(text)


async def test_an_ambiguous_beginning_is_refused(catalogue: Catalogue) -> None:
    await add(catalogue, A, "busybox")
    await add(catalogue, AB, "nginx", OTHER_DIGEST)
    with pytest.raises(NotFound, match="more than one id"):
        await catalogue.find("a")
    assert (await catalogue.get("ab")).id == AB


async def test_a_name_wins_over_the_beginning_of_an_id(catalogue: Catalogue) -> None:
    await add(catalogue, A, "busybox")
    await add(catalogue, B, "aa", OTHER_DIGEST)
    assert (await catalogue.get("aa")).id == B


async def test_a_tag_that_moves_leaves_the_old_image_its_digests(catalogue: Catalogue) -> None:
    await add(catalogue, A, "busybox:1")
    await add(catalogue, B, "busybox:1", OTHER_DIGEST)
    old, new = await catalogue.get(A), await catalogue.get(B)
    assert (old.tags, old.digests) == ((), (f"docker.io/library/busybox@{DIGEST}",))
    assert (new.tags, new.digests) == (
        ("docker.io/library/busybox:1",),
        (f"docker.io/library/busybox@{OTHER_DIGEST}",),
    )


async def test_names_gather(catalogue: Catalogue) -> None:
    await add(catalogue, A, "busybox:1")
    await catalogue.name(A, parse_reference("busybox:2"), DIGEST)
    await catalogue.name(A, parse_reference("quay.io/b"), OTHER_DIGEST)
    await catalogue.name(A, parse_reference(f"quay.io/b@{DIGEST}"), DIGEST)
    found = await catalogue.get(A)
    assert found.tags == ("docker.io/library/busybox:1", "docker.io/library/busybox:2", "quay.io/b:latest")
    assert found.digests == (
        f"docker.io/library/busybox@{DIGEST}",
        f"quay.io/b@{DIGEST}",
        f"quay.io/b@{OTHER_DIGEST}",
    )


async def test_naming_what_was_removed_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="just been removed"):
        await catalogue.name(A, parse_reference("busybox"), DIGEST)


def test_an_image_pulled_by_digest_alone_has_no_tag() -> None:
    (changed,) = named([record(A)], A, parse_reference(f"busybox@{DIGEST}"), DIGEST)
    assert (changed.tags, changed.digests) == ((), (f"docker.io/library/busybox@{DIGEST}",))


async def test_a_pull_is_unfinished_until_it_ends(catalogue: Catalogue) -> None:
    await catalogue.begin(A)
    await catalogue.begin(B)
    assert await catalogue.unfinished() == [A, B]
    assert (await catalogue.snapshot()).images == {}
    await catalogue.finish(record(A), documents(A), parse_reference("busybox"), DIGEST)
    await catalogue.abandon(B)
    assert await catalogue.unfinished() == []
    assert list((await catalogue.snapshot()).images) == [A]


async def test_abandoning_takes_the_image_and_its_documents(catalogue: Catalogue) -> None:
    await add(catalogue, A, "busybox")
    assert (await catalogue.documents(A)).config == "{}"
    await catalogue.abandon(A)
    assert (await catalogue.snapshot()).images == {}
    with pytest.raises(NotFound):
        await catalogue.documents(A)


async def test_a_listing_is_made_again_only_after_a_change_by_whomever(tmp_path: Path) -> None:
    path = tmp_path / "image.db"
    async with open_store(path) as one, open_store(path) as two:
        here, there = Catalogue(one, Claims(tmp_path)), Catalogue(two, Claims(tmp_path))
        await add(here, A, "busybox")
        first = await here.snapshot()
        assert await here.snapshot() is first
        assert [image.id for image in ListImagesResponse.parse(first.listing).images] == [A]
        await add(there, B, "nginx", OTHER_DIGEST)
        second = await here.snapshot()
        assert [image.id for image in ListImagesResponse.parse(second.listing).images] == [A, B]
        assert await here.snapshot() is second
        await there.abandon(A)
        assert list((await here.snapshot()).images) == [B]


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [
        ("", None, ""),
        ("0", 0, ""),
        ("1002", 1002, ""),
        ("1003:1004", 1003, ""),
        ("www-data", None, "www-data"),
        ("www-data:1004", None, "www-data"),
        ("9" * 30, None, "9" * 30),
        ("²", None, "²"),
    ],
)
def test_the_user_is_a_number_or_a_name(user: str, uid: int | None, username: str) -> None:
    image = Image.parse(bytes(cri_image(record(A, user=user))))
    assert (None if image.uid is None else image.uid.value, image.username) == (uid, username)


def test_the_cri_form() -> None:
    image = cri_image(record(A, tags=("a.b/c:1",), digests=(f"a.b/c@{DIGEST}",), size_bytes=5))
    assert (image.id, image.size, image.pinned) == (A, 5, False)
    assert (image.repo_tags, image.repo_digests) == (["a.b/c:1"], [f"a.b/c@{DIGEST}"])
    assert image.spec is not None
    assert image.spec.image == "a.b/c:1"
