"""Getting documents and blobs from registries that behave, and from some that do not."""

import asyncio
import contextlib
import gzip
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from criw.config.image import ImageSection, Registry
from criw.errors import DataLoss, Failed, NotFound
from criw_image.manifest import Descriptor, Manifest
from criw_image.reference import parse_reference
from criw_image.source import Source
from criw_image.transport import Http, open_http
from criw_proto.runtime.v1 import AuthConfig
from support import images
from support.own import free_port
from support.registry import basic_auth
from support.scripted_registry import ScriptedRegistry, scripted_registry

IMAGE = images.small("x" * 100_000)
BLOB = bytes(range(256)) * 10_000  # larger than one batch
DESCRIPTOR = Descriptor(
    media_type=images.OCI.layers[images.Compression.NONE], digest=images.digest_of(BLOB), size=len(BLOB)
)


@pytest_asyncio.fixture
async def registry() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as running:
        running.add("a/b:1", IMAGE)
        running.blobs[DESCRIPTOR.digest] = BLOB
        yield running


@pytest_asyncio.fixture
async def mirror() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as running:
        running.add("a/b:1", IMAGE)
        running.blobs[DESCRIPTOR.digest] = BLOB
        yield running


def section(registry: ScriptedRegistry, *, mirrors: tuple[str, ...] = (), stall_timeout_s: float = 5) -> ImageSection:
    entry = Registry(plain_http=True, mirrors=mirrors)
    return ImageSection(registries={registry.host: entry}, stall_timeout_s=stall_timeout_s)


def source_of(http: Http, registry: ScriptedRegistry, auth: AuthConfig | None = None, name: str = "a/b:1") -> Source:
    return Source(http, parse_reference(f"{registry.host}/{name}"), auth)


def ignore(_: int) -> None:
    pass


async def test_a_manifest_comes_with_its_digest_and_type(registry: ScriptedRegistry) -> None:
    async with open_http(section(registry)) as http:
        document = await source_of(http, registry).manifest()
    assert (document.data, document.digest) == (IMAGE.manifest, IMAGE.digest)
    assert isinstance(document.parsed, Manifest)
    (request,) = registry.seen
    assert request.path == "/v2/a/b/manifests/1"
    assert images.OCI.index in request.headers["Accept"]
    assert request.headers["User-Agent"].startswith("criw/")
    assert request.query == {}


async def test_by_digest_the_digest_is_asked_for_and_checked(registry: ScriptedRegistry) -> None:
    name = f"a/b@{IMAGE.digest}"
    async with open_http(section(registry)) as http:
        document = await source_of(http, registry, name=name).manifest()
        assert document.digest == IMAGE.digest
        registry.manifests[name] = (IMAGE.media_type, IMAGE.manifest + b" ")
        with pytest.raises(DataLoss, match=f"instead of {IMAGE.digest}"):
            await source_of(http, registry, name=name).manifest()


async def test_an_index_s_entry_is_asked_for_and_checked(registry: ScriptedRegistry) -> None:
    entry = Descriptor(media_type=IMAGE.media_type, digest=IMAGE.digest, size=len(IMAGE.manifest))
    async with open_http(section(registry)) as http:
        assert (await source_of(http, registry).manifest(entry)).digest == IMAGE.digest
        registry.manifests[f"a/b@{IMAGE.digest}"] = (IMAGE.media_type, b"{}")
        with pytest.raises(DataLoss, match="its manifest has digest"):
            await source_of(http, registry).manifest(entry)


async def test_a_digest_of_the_registry_that_is_wrong_is_noticed(registry: ScriptedRegistry) -> None:
    registry.answer = lambda _: web.Response(body=b"{}", headers={"Docker-Content-Digest": IMAGE.digest})
    async with open_http(section(registry)) as http:
        with pytest.raises(DataLoss, match=f"instead of {IMAGE.digest}"):
            await source_of(http, registry).manifest()


async def test_a_huge_manifest_is_refused(registry: ScriptedRegistry) -> None:
    registry.manifests["a/b@1"] = (images.OCI.manifest, bytes(4 * 1024 * 1024 + 1))
    async with open_http(section(registry)) as http:
        with pytest.raises(Failed, match="larger than 4194304 bytes"):
            await source_of(http, registry).manifest()


async def test_head_tells_the_digest(registry: ScriptedRegistry) -> None:
    async with open_http(section(registry)) as http:
        assert await source_of(http, registry).head() == IMAGE.digest
        with pytest.raises(NotFound):
            await source_of(http, registry, name="a/b:2").head()
        registry.answer = lambda _: web.Response(status=405)
        assert await source_of(http, registry).head() == ""


def answering_head_with(digest: str) -> Callable[[web.Request], web.Response | None]:
    def answer(request: web.Request) -> web.Response | None:
        return web.Response(headers={"Docker-Content-Digest": digest}) if request.method == "HEAD" else None

    return answer


async def test_a_digest_is_the_reference_s_whatever_a_mirror_says(
    registry: ScriptedRegistry, mirror: ScriptedRegistry
) -> None:
    mirror.answer = answering_head_with(images.digest_of(b"old"))
    async with open_http(section(registry, mirrors=(mirror.url,))) as http:
        assert await source_of(http, registry, name=f"a/b@{IMAGE.digest}").head() == IMAGE.digest
    assert [request.method for request in registry.seen] == ["HEAD"]


async def test_a_digest_of_another_algorithm_contradicts_nothing(registry: ScriptedRegistry) -> None:
    registry.answer = answering_head_with(f"sha512:{'0' * 128}")
    async with open_http(section(registry)) as http:
        assert await source_of(http, registry, name=f"a/b@{IMAGE.digest}").head() == IMAGE.digest


async def test_a_mirror_s_word_on_a_tag_is_not_asked_for_without_the_content(
    registry: ScriptedRegistry, mirror: ScriptedRegistry
) -> None:
    async with open_http(section(registry, mirrors=(mirror.url,))) as http:
        assert await source_of(http, registry).head() == ""
    assert mirror.seen == []


async def test_a_missing_image_is_named(registry: ScriptedRegistry) -> None:
    async with open_http(section(registry)) as http:
        with pytest.raises(
            NotFound,
            match=rf"^cannot find {registry.host}/a/b:2: not found, .* does not have it \(manifest unknown: unknown\)",
        ):
            await source_of(http, registry, name="a/b:2").manifest()


async def test_a_registry_that_is_down_is_told_as_the_kubelet_wants_it() -> None:
    host = f"127.0.0.1:{free_port()}"
    async with open_http(ImageSection(registries={host: Registry(plain_http=True)})) as http:
        source = Source(http, parse_reference(f"{host}/a/b"), None)
        with pytest.raises(Failed, match=rf"^RegistryUnavailable: cannot reach the registry of {host}/a/b:latest"):
            await source.manifest()


async def test_a_registry_that_is_unwell_is_asked_again(registry: ScriptedRegistry) -> None:
    answers = iter([web.Response(status=503), web.Response(status=429), None])
    registry.answer = lambda _: next(answers)
    async with open_http(section(registry)) as http:
        assert (await source_of(http, registry).manifest()).digest == IMAGE.digest
        registry.answer = lambda _: web.json_response(
            {"errors": [{"code": "BUSY", "message": "come later"}]}, status=503
        )
        with pytest.raises(Failed, match=r"^RegistryUnavailable: .* HTTP status 503 \(busy: come later\)"):
            await source_of(http, registry).manifest()


async def test_another_refusal_is_told(registry: ScriptedRegistry) -> None:
    registry.answer = lambda _: web.Response(status=418, text="<html>")
    async with open_http(section(registry)) as http:
        with pytest.raises(Failed, match=r"^cannot pull .* answered HTTP status 418$"):
            await source_of(http, registry).manifest()


async def test_a_blob_arrives_whole_under_its_name(registry: ScriptedRegistry, tmp_path: Path) -> None:
    told: list[int] = []
    async with open_http(section(registry)) as http:
        await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", told.append)
    assert (tmp_path / "blob").read_bytes() == BLOB
    assert list(tmp_path.iterdir()) == [tmp_path / "blob"]
    assert told == sorted(told)
    assert told[-1] == len(BLOB)
    assert len(told) > 1


async def test_an_empty_blob_arrives(registry: ScriptedRegistry, tmp_path: Path) -> None:
    empty = Descriptor(media_type="x", digest=images.digest_of(b""), size=0)
    registry.blobs[empty.digest] = b""
    async with open_http(section(registry)) as http:
        await source_of(http, registry).download(empty, tmp_path / "blob", ignore)
    assert (tmp_path / "blob").read_bytes() == b""


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_broken_download_goes_on_where_it_broke(
    registry: ScriptedRegistry, tmp_path: Path, *, ranges: bool
) -> None:
    registry.ranges = ranges
    steps = iter([700_000, 700_001, 2_000_000])

    def shorter(_: web.Request) -> None:
        registry.break_after = next(steps, None)

    registry.answer = shorter
    async with open_http(section(registry)) as http:
        await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", ignore)
    assert (tmp_path / "blob").read_bytes() == BLOB
    asked = [request.headers.get("Range") for request in registry.requests("blobs")]
    assert asked[0] is None
    assert all(re.fullmatch(r"bytes=\d+-", text or "") for text in asked[1:])
    assert len(asked) == 3 if ranges else len(asked) == 4


async def test_a_download_that_gets_nowhere_is_given_up(registry: ScriptedRegistry, tmp_path: Path) -> None:
    registry.break_after = 0
    async with open_http(section(registry)) as http:
        with pytest.raises(Failed, match=r"^RegistryUnavailable"):
            await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", ignore)
    assert list(tmp_path.iterdir()) == []


async def test_a_stalled_download_is_given_up(registry: ScriptedRegistry, tmp_path: Path) -> None:
    end = asyncio.Event()

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(BLOB)
        await response.prepare(request)
        await end.wait()
        return response

    registry.take_over = stall
    async with open_http(section(registry, stall_timeout_s=0.05)) as http:
        with pytest.raises(Failed, match=r"^RegistryUnavailable: .* nothing came for 0.05 s"):
            await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", ignore)
    end.set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"y" * len(BLOB), "their digest is sha256:"),
        (BLOB + b"more", r"longer than its manifest says \(2560000 bytes\)"),
    ],
)
async def test_a_wrong_blob_is_refused(registry: ScriptedRegistry, tmp_path: Path, data: bytes, message: str) -> None:
    registry.blobs[DESCRIPTOR.digest] = data
    async with open_http(section(registry)) as http:
        with pytest.raises(DataLoss, match=message):
            await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", ignore)
        with pytest.raises(DataLoss, match="another digest or size"):
            await source_of(http, registry).small_blob(DESCRIPTOR)
    assert list(tmp_path.iterdir()) == []


async def test_a_blob_of_another_size_than_its_descriptor_says_is_refused(registry: ScriptedRegistry) -> None:
    async with open_http(section(registry)) as http:
        for size in (len(IMAGE.config) - 1, len(IMAGE.config) + 1):
            with pytest.raises(DataLoss, match="another digest or size"):
                descriptor = Descriptor(media_type="x", digest=IMAGE.id, size=size)
                await source_of(http, registry).small_blob(descriptor)


async def test_a_manifest_of_another_size_than_its_index_says_is_refused(registry: ScriptedRegistry) -> None:
    async with open_http(section(registry)) as http:
        for size in (len(IMAGE.manifest) - 1, len(IMAGE.manifest) + 1):
            entry = Descriptor(media_type=IMAGE.media_type, digest=IMAGE.digest, size=size)
            with pytest.raises(DataLoss, match=f"bytes instead of {size}"):
                await source_of(http, registry).manifest(entry)


async def test_a_manifest_that_comes_compressed_is_decoded(registry: ScriptedRegistry) -> None:
    headers = {"Content-Encoding": "gzip", "Docker-Content-Digest": IMAGE.digest, "Content-Type": IMAGE.media_type}
    registry.answer = lambda _: web.Response(body=gzip.compress(IMAGE.manifest), headers=headers)
    async with open_http(section(registry)) as http:
        assert (await source_of(http, registry).manifest()).data == IMAGE.manifest
        registry.answer = lambda _: web.Response(body=gzip.compress(bytes(2**26)), headers=headers)
        with pytest.raises(Failed, match="larger than 4194304 bytes"):
            await source_of(http, registry).manifest()


async def test_a_download_that_trickles_is_given_up(registry: ScriptedRegistry, tmp_path: Path) -> None:
    given_up = asyncio.Event()

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=206 if "Range" in request.headers else 200)
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"
        response.content_length = len(BLOB) - start
        await response.prepare(request)
        for byte in BLOB[start:]:
            with contextlib.suppress(ConnectionError):
                await response.write(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(given_up.wait(), 0.02)
                break
        return response

    registry.take_over = trickle
    async with asyncio.timeout(20), open_http(section(registry, stall_timeout_s=0.1)) as http:
        with pytest.raises(Failed, match=r"only \d+ bytes came for 0\.1 s"):
            await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", ignore)
        given_up.set()
    assert list(tmp_path.iterdir()) == []


async def test_answers_of_one_byte_are_no_progress(registry: ScriptedRegistry, tmp_path: Path) -> None:
    registry.break_after = 1
    async with asyncio.timeout(20), open_http(section(registry)) as http:
        with pytest.raises(Failed, match=r"^RegistryUnavailable"):
            await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", ignore)
    assert len(registry.requests("blobs")) <= 9


async def test_a_cancelled_download_leaves_nothing(registry: ScriptedRegistry, tmp_path: Path) -> None:
    half = asyncio.Event()
    async with open_http(section(registry)) as http:
        download = source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", lambda _: half.set())
        task = asyncio.create_task(download)
        await half.wait()
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    assert list(tmp_path.iterdir()) == []


async def test_mirrors_are_asked_first_and_told_the_registry(
    registry: ScriptedRegistry, mirror: ScriptedRegistry, tmp_path: Path
) -> None:
    async with open_http(section(registry, mirrors=(mirror.url + "/",))) as http:
        source = source_of(http, registry)
        assert (await source.manifest()).digest == IMAGE.digest
        await source.download(DESCRIPTOR, tmp_path / "blob", ignore)
    assert registry.seen == []
    assert [request.path for request in mirror.seen] == ["/v2/a/b/manifests/1", f"/v2/a/b/blobs/{DESCRIPTOR.digest}"]
    assert [request.query for request in mirror.seen] == [{"ns": registry.host}] * 2


async def test_a_mirror_of_docker_hub_is_not_told(mirror: ScriptedRegistry) -> None:
    mirror.add("library/busybox:latest", IMAGE)
    async with open_http(ImageSection(registries={"docker.io": Registry(mirrors=(mirror.url,))})) as http:
        await Source(http, parse_reference("busybox"), None).manifest()
    (request,) = mirror.seen
    assert (request.path, request.query) == ("/v2/library/busybox/manifests/latest", {})


async def test_the_star_stands_for_registries_not_listed(registry: ScriptedRegistry, mirror: ScriptedRegistry) -> None:
    registries = {"*": Registry(mirrors=(mirror.url,)), registry.host: Registry(plain_http=True)}
    async with open_http(ImageSection(registries=registries)) as http:
        await Source(http, parse_reference("quay.example/a/b:1"), None).manifest()
        assert len(mirror.seen) == 1
        await source_of(http, registry).manifest()
    assert len(registry.seen) == 1
    assert len(mirror.seen) == 1


Spoil = Callable[[ScriptedRegistry], None]


def without_image(mirror: ScriptedRegistry) -> None:
    mirror.manifests.clear()


def unwell(mirror: ScriptedRegistry) -> None:
    mirror.answer = lambda _: web.Response(status=500)


def refusing(mirror: ScriptedRegistry) -> None:
    mirror.answer = lambda _: web.Response(status=401)


def with_a_page(mirror: ScriptedRegistry) -> None:
    mirror.answer = lambda _: web.Response(text="<html>Please log in</html>", content_type="text/html")


def lying(mirror: ScriptedRegistry) -> None:
    mirror.answer = lambda _: web.Response(body=b"{}", headers={"Docker-Content-Digest": IMAGE.digest})


@pytest.mark.parametrize("spoil", [without_image, unwell, refusing, with_a_page, lying])
async def test_a_mirror_that_fails_is_passed_over(
    registry: ScriptedRegistry, mirror: ScriptedRegistry, spoil: Spoil
) -> None:
    spoil(mirror)
    async with open_http(section(registry, mirrors=(mirror.url,))) as http:
        source = source_of(http, registry)
        assert (await source.manifest()).digest == IMAGE.digest
        asked = len(mirror.seen)
        await source.small_blob(Descriptor(media_type="x", digest=IMAGE.id, size=len(IMAGE.config)))
        assert len(mirror.seen) == asked  # what served the manifest is asked first from then on


async def test_when_all_fail_the_registry_s_word_counts(registry: ScriptedRegistry, mirror: ScriptedRegistry) -> None:
    unwell(mirror)
    async with open_http(section(registry, mirrors=(mirror.url,))) as http:
        with pytest.raises(NotFound, match=f"{registry.url} does not have it.*; mirror {mirror.url}.*HTTP status 500"):
            await source_of(http, registry, name="a/b:2").manifest()


async def test_a_download_goes_on_at_the_next_endpoint(
    registry: ScriptedRegistry, mirror: ScriptedRegistry, tmp_path: Path
) -> None:
    mirror.break_after = 1_000_000

    def once(_: web.Request) -> web.Response | None:
        return web.Response(status=500) if mirror.requests("blobs")[1:] else None

    mirror.answer = once
    async with open_http(section(registry, mirrors=(mirror.url,))) as http:
        await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", ignore)
    assert (tmp_path / "blob").read_bytes() == BLOB
    (request,) = registry.requests("blobs")
    taken_up = re.fullmatch(r"bytes=(\d+)-", request.headers["Range"])
    assert taken_up is not None
    assert 0 < int(taken_up[1]) <= 1_000_000  # what had come but was not read when the connection broke comes again


async def test_a_wrong_blob_of_a_mirror_is_fetched_anew_from_the_registry(
    registry: ScriptedRegistry, mirror: ScriptedRegistry, tmp_path: Path
) -> None:
    mirror.blobs[DESCRIPTOR.digest] = b"y" * len(BLOB)
    async with open_http(section(registry, mirrors=(mirror.url,))) as http:
        await source_of(http, registry).download(DESCRIPTOR, tmp_path / "blob", ignore)
    assert (tmp_path / "blob").read_bytes() == BLOB


def wants_basic(request: web.Request) -> web.Response | None:
    if request.headers.get("Authorization") == basic_auth("user", "password"):
        return None
    return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})


async def test_credentials_are_not_sent_to_a_mirror(registry: ScriptedRegistry, mirror: ScriptedRegistry) -> None:
    mirror.answer = wants_basic
    registry.answer = wants_basic
    auth = AuthConfig(username="user", password="password")
    async with open_http(section(registry, mirrors=(mirror.url,))) as http:
        assert (await source_of(http, registry, auth).manifest()).digest == IMAGE.digest
    assert all("Authorization" not in request.headers for request in mirror.seen)
    registries = {
        registry.host: Registry(plain_http=True, mirrors=(mirror.url,)),
        mirror.host: Registry(username="user", password="password"),
    }
    registry.seen.clear()
    async with open_http(ImageSection(registries=registries)) as http:
        await source_of(http, registry).manifest()
    assert registry.seen == []
