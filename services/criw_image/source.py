"""What an image is made of, got from the first of its hosts that can give it: a mirror that fails is passed over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import aiohttp

from criw.errors import DataLoss, Failed, Fault
from criw_image.blob import PartialBlob
from criw_image.endpoint import Endpoint
from criw_image.foreign import cleaned
from criw_image.manifest import (
    ACCEPTED,
    MANIFEST_LIMIT_BYTES,
    Descriptor,
    Index,
    Manifest,
    digest_of,
    parse_manifest,
)
from criw_image.reference import Reference, is_digest, same_algorithm
from criw_image.transport import Down, Http
from criw_proto.runtime.v1 import AuthConfig

_ATTEMPTS: Final = 3  # without a byte of progress
_PAUSE_S: Final = 0.2  # before the second attempt, twice as long before each further one
_FAIR_BYTES: Final = 64 * 1024  # an answer that brings less is endured as often as one that brings nothing
_BATCH_BYTES: Final = 512 * 1024  # hashed and written by one trip to a thread
# The kubelet looks for this at the beginning of a message, and only where the status is UNKNOWN: what `Failed` becomes.
_UNAVAILABLE: Final = "RegistryUnavailable"

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """A manifest or an index as it came, and what it says."""

    data: bytes
    digest: str
    parsed: Manifest | Index


class Source:
    """All endpoints of one image, for one pull with one caller's credentials.

    Raises InvalidArgument for credentials that cannot be read.
    """

    def __init__(self, http: Http, reference: Reference, auth: AuthConfig | None) -> None:
        self._reference = reference
        self._order = [Endpoint(http, host, reference) for host in http.hosts.of(reference, auth)]
        self._registry = self._order[-1]

    async def head(self) -> str:
        """The digest the name stands for now, so far as that can be told without the content; else empty.

        A reference's own digest, once an endpoint allows the pull of it. For a tag the word of the registry itself:
        what a mirror says of a tag is believed only of content that was hashed.
        Raises NotFound, PermissionDenied, DataLoss if all endpoints have something else under the reference's digest.
        """
        wanted = self._reference.digest
        if not wanted and len(self._order) > 1:
            return ""

        async def attempt(endpoint: Endpoint) -> str:
            headers = {"Accept": ", ".join(ACCEPTED)}
            async with endpoint.ask("HEAD", self._manifest_path(), headers) as response:
                told = response.headers.get("Docker-Content-Digest", "")
            if wanted and is_digest(told) and told != wanted and same_algorithm(told, wanted):
                raise DataLoss(f"cannot pull {self._reference}: {endpoint} says that its manifest has digest {told}")
            return wanted or told

        with contextlib.suppress(Failed):  # not every registry has HEAD; GET will tell what is wrong
            return await self._first(attempt)
        return ""

    async def manifest(self, descriptor: Descriptor | None = None) -> Document:
        """The document the name stands for, or one an index names.

        Raises as `parse_manifest`, DataLoss for a wrong digest or size, NotFound, PermissionDenied, and Failed with
        RegistryUnavailable at the beginning if no endpoint can be reached.
        """
        wanted = descriptor.digest if descriptor else self._reference.digest
        path = f"manifests/{wanted}" if wanted else self._manifest_path()

        async def attempt(endpoint: Endpoint) -> Document:
            headers = {"Accept": ", ".join(ACCEPTED)}
            async with endpoint.ask("GET", path, headers) as response:
                data = await endpoint.http.read(response, MANIFEST_LIMIT_BYTES)
                promised = wanted or response.headers.get("Docker-Content-Digest", "")
                media_type = response.content_type if "Content-Type" in response.headers else ""
            if data is None:
                raise Failed(f"cannot pull {self._reference}: its manifest is larger than {MANIFEST_LIMIT_BYTES} bytes")
            found = digest_of(data, like=promised) if promised.startswith("sha512:") else digest_of(data)
            if promised and found != promised:
                raise DataLoss(
                    f"cannot pull {self._reference}: its manifest has digest {found} instead of {cleaned(promised)}"
                )
            if descriptor is not None and len(data) != descriptor.size:
                raise DataLoss(
                    f"cannot pull {self._reference}: its manifest {found} has {len(data)} bytes instead of "
                    f"{descriptor.size}"
                )
            return Document(data, found, parse_manifest(data, media_type, what=str(self._reference)))

        return await self._first(attempt)

    async def small_blob(self, descriptor: Descriptor) -> bytes:
        """A blob into memory. The caller has bounded its size. Raises as `manifest`."""

        async def attempt(endpoint: Endpoint) -> bytes:
            async with endpoint.ask("GET", f"blobs/{descriptor.digest}") as response:
                data = await endpoint.http.read(response, descriptor.size)
            if (
                data is None
                or len(data) != descriptor.size
                or digest_of(data, like=descriptor.digest) != descriptor.digest
            ):
                raise DataLoss(f"cannot pull {self._reference}: blob {descriptor.digest} has another digest or size")
            return data

        return await self._first(attempt)

    async def download(self, descriptor: Descriptor, path: Path, tell: Callable[[int], None]) -> None:
        """A blob into the new file `path`, there only when it is whole and right. `tell` gets the bytes done so far.

        A connection that breaks is taken up again where it broke, at the same endpoint or the next. Raises as
        `manifest`.
        """
        with PartialBlob(path, descriptor) as blob:

            async def attempt(endpoint: Endpoint) -> None:
                try:
                    await _receive(endpoint, descriptor, blob, tell)
                    blob.verify()
                except DataLoss:
                    await asyncio.to_thread(blob.restart)
                    raise

            await self._first(attempt)
            blob.finish()

    def _manifest_path(self) -> str:
        return f"manifests/{self._reference.digest or self._reference.tag}"

    async def _first(self, attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
        """The first success, the endpoint that served the pull last being asked first."""
        problems: dict[Endpoint, Down | Fault] = {}
        for endpoint in tuple(self._order):
            try:
                result = await _patiently(attempt, endpoint)
            except (Down, Fault) as err:
                problems[endpoint] = err
                continue
            self._order = [endpoint, *(other for other in self._order if other is not endpoint)]
            return result
        raise self._verdict(problems)

    def _verdict(self, problems: dict[Endpoint, Down | Fault]) -> Fault:
        """What the registry itself says counts; what the mirrors said is told along."""
        own = problems.pop(self._registry)
        mirrors = "".join(f"; mirror {endpoint}: {err}" for endpoint, err in problems.items())
        if isinstance(own, Down):
            fault: Fault = Failed(f"{_UNAVAILABLE}: cannot reach the registry of {self._reference}: {own}{mirrors}")
        else:
            fault = type(own)(f"{own}{mirrors}")
        fault.__cause__ = own
        return fault


async def _patiently(attempt: Callable[[Endpoint], Awaitable[T]], endpoint: Endpoint) -> T:
    for number in range(1, _ATTEMPTS):
        with contextlib.suppress(Down):
            return await attempt(endpoint)
        await asyncio.sleep(_PAUSE_S * 2 ** (number - 1))
    return await attempt(endpoint)


async def _receive(endpoint: Endpoint, descriptor: Descriptor, blob: PartialBlob, tell: Callable[[int], None]) -> None:
    """Append what the blob lacks; again for as long as there is progress worth it. Raises Down when there is none."""
    poor = 0
    while blob.size < descriptor.size or not descriptor.size:
        before = blob.size
        headers = {"Range": f"bytes={before}-"} if before else {}
        try:
            async with endpoint.ask("GET", f"blobs/{descriptor.digest}", headers) as response:
                await _append(
                    endpoint.http.pieces(response),
                    response,
                    blob,
                    skip=0 if response.status == 206 else before,
                    tell=tell,
                )
            if not descriptor.size:
                return
            if blob.size < descriptor.size:
                raise Down(f"{endpoint}: the connection ended early")
        except Down:
            poor = 0 if blob.size - before >= _FAIR_BYTES else poor + 1
            if blob.size == before or poor == _ATTEMPTS:
                raise


async def _append(
    body: AsyncIterator[bytes],
    response: aiohttp.ClientResponse,
    blob: PartialBlob,
    *,
    skip: int,
    tell: Callable[[int], None],
) -> None:
    """Write the body but its first `skip` bytes; what came before a failure is written, too."""
    if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {blob.size}-"):
        raise Failed(f"cannot resume a download from {response.url.origin()}: it sends another range than asked for")
    pieces: list[bytes] = []
    waiting = 0

    async def flush() -> None:
        nonlocal waiting
        await asyncio.to_thread(blob.write, pieces)
        pieces.clear()
        waiting = 0
        tell(blob.size)

    try:
        async for piece in body:
            fresh = piece[skip:] if skip else piece
            skip = max(0, skip - len(piece))
            pieces.append(fresh)
            waiting += len(fresh)
            if waiting >= _BATCH_BYTES:
                await flush()
    except (aiohttp.ClientError, Down):
        await flush()
        raise
    await flush()
