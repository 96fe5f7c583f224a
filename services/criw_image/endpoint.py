"""One place an image can come from, a registry or a mirror of it, spoken to in HTTP (OCI distribution-spec).

Every request is answered, authenticated, redirected or refused here. Credentials go to the endpoint they are meant for
and, as the token specification has it, to the token server it names; never to where it redirects.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from criw import __version__
from criw.config.image import ImageSection
from criw.errors import Failed, Fault, NotFound, PermissionDenied
from criw_image.auth import Challenge, parse_challenges
from criw_image.hosts import Host, Hosts
from criw_image.reference import Reference

_CONNECT_TIMEOUT_S: Final = 10.0
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_REDIRECT_LIMIT: Final = 5
_TRY_LATER: Final = frozenset({408, 429})  # besides 5xx
_ANSWER_LIMIT_BYTES: Final = 1024 * 1024  # of a token, or of what is said about an error
_SAID_LIMIT: Final = 300
_BUFFER_BYTES: Final = 256 * 1024  # received ahead of what is written, a connection; aiohttp takes up to twice as much


class Down(Exception):  # noqa: N818 — like the faults, named by what the caller learns
    """The endpoint cannot be reached or is not well: it later, or another one now, may help."""


class Http:
    """Connections and trust, shared by all pulls. Use `open_http()`."""

    def __init__(self, session: aiohttp.ClientSession, section: ImageSection) -> None:
        self.session = session
        self.stall_timeout_s = section.stall_timeout_s
        self.hosts = Hosts(section.registries)
        self._contexts: dict[tuple[Path, int], ssl.SSLContext] = {}

    async def trust(self, ca_file: Path | None) -> ssl.SSLContext | bool:
        """The system's authorities, and those of `ca_file` besides. Raises Failed if that cannot be read."""
        if ca_file is None:
            return True
        try:
            key = (ca_file, ca_file.stat().st_mtime_ns)
            if key not in self._contexts:
                self._contexts[key] = await asyncio.to_thread(_context, ca_file)
            return self._contexts[key]
        except OSError as err:  # ssl.SSLError is one
            raise Failed(f"cannot use ca_file {ca_file}: {err.strerror or err}") from err


def _context(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


@contextlib.asynccontextmanager
async def open_http(section: ImageSection) -> AsyncIterator[Http]:
    """What talks to registries until the block is left."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=section.stall_timeout_s)
    async with aiohttp.ClientSession(
        timeout=timeout,
        auto_decompress=False,  # digests are of what was stored
        headers={"User-Agent": f"criw/{__version__}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0),  # a pull bounds its own downloads
        read_bufsize=_BUFFER_BYTES,
    ) as session:
        yield Http(session, section)


class Endpoint:
    """The repository of an image at one host, for one pull: the token it is given is kept no longer."""

    def __init__(self, http: Http, host: Host, reference: Reference) -> None:
        self.base = host.base
        self._http = http
        self._repository = reference.repository
        self._root = host.base / "v2" / reference.repository
        self._what = str(reference)
        self._credentials = host.credentials
        self._ca_file = host.ca_file
        self._query = host.query
        self._authorization = ""
        if host.credentials is not None and host.credentials.registry_token:
            self._authorization = f"Bearer {host.credentials.registry_token}"
        self._authenticating = asyncio.Lock()

    def __str__(self) -> str:
        return str(self.base)

    @contextlib.asynccontextmanager
    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request below the repository, with status 200 or 206.

        Raises Down (also for a connection that breaks while the block reads the body), NotFound, PermissionDenied, and
        Failed for every other answer.
        """
        url = (self._root / path).update_query(self._query)
        try:
            async with contextlib.AsyncExitStack() as stack:
                response = await self._answer(stack, method, url, headers or {})
                if response.status not in (200, 206):
                    raise await self._refusal(response)
                yield response
        except aiohttp.ClientConnectorCertificateError as err:
            raise Failed(
                f"cannot trust {self.base} for {self._what}: {err.certificate_error}; "
                f"set ca_file for it in [image.registries] to the authority that signed its certificate"
            ) from err
        except aiohttp.ClientConnectorSSLError as err:
            raise Failed(
                f"cannot speak TLS with {self.base} for {self._what}: {err.os_error}; "
                "if it is a plain-HTTP registry, set plain_http for it in [image.registries]"
            ) from err
        except aiohttp.ClientError as err:
            raise Down(f"{self.base}: {self._reason(err)}") from err

    async def _answer(
        self, stack: contextlib.AsyncExitStack, method: str, url: URL, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        for again in (True, False):  # the second time with an answer to the challenge, or a fresh token
            used = self._authorization
            response = await self._follow(stack, method, url, headers, authorization=used)
            if response.status != 401 or response.url.origin() != self.base.origin():
                return response
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            said = await _said(response)
            if not again or not await self._authenticate(challenges, refused=used):
                break
        raise self._denied(said, known=bool(used))

    async def _follow(
        self, stack: contextlib.AsyncExitStack, method: str, url: URL, headers: Mapping[str, str], *, authorization: str
    ) -> aiohttp.ClientResponse:
        here = url.origin()
        for _ in range(_REDIRECT_LIMIT + 1):
            ours = url.origin() == here
            trust = await self._http.trust(self._ca_file if ours else self._http.hosts.ca_file(url))
            sent = {**headers, "Authorization": authorization} if ours and authorization else headers
            request = self._http.session.request(method, url, headers=sent, ssl=trust, allow_redirects=False)
            response = await stack.enter_async_context(request)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            # Kept as it is written: a signed URL does not survive being quoted again.
            target = url.join(self._stranger(response.headers["Location"]))
            if target.scheme not in {"http", "https"} or (url.scheme == "https" and target.scheme == "http"):
                raise Failed(f"cannot pull {self._what}: {self.base} redirects to {target.scheme}, which is not secure")
            response.release()
            url = target
        raise Failed(f"cannot pull {self._what}: {self.base} redirects more than {_REDIRECT_LIMIT} times")

    async def _authenticate(self, challenges: Sequence[Challenge], *, refused: str) -> bool:
        """Get what answers one of the challenges; False if we have nothing but what was `refused` already."""
        async with self._authenticating:
            if self._authorization != refused:
                return True  # another download was faster
            if self._credentials is not None and self._credentials.registry_token:
                return False
            for challenge in challenges:
                if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                    self._authorization = f"Bearer {await self._token(challenge.parameters)}"
                    return True
                if challenge.scheme == "basic" and self._credentials is not None and self._credentials.basic:
                    self._authorization = self._credentials.basic
                    return self._authorization != refused
            return False

    async def _token(self, parameters: Mapping[str, str]) -> str:
        realm = self._stranger(parameters["realm"])
        if realm.scheme not in {"http", "https"}:
            raise Failed(f"cannot authenticate at {self.base} for {self._what}: its token server is {realm}")
        if realm.scheme == "http" and self.base.scheme == "https" and self._credentials is not None:
            raise Failed(
                f"cannot authenticate at {self.base} for {self._what}: it wants the credentials sent over plain HTTP "
                f"to {realm.authority}"
            )
        asked = {"scope": parameters.get("scope") or f"repository:{self._repository}:pull"}
        if service := parameters.get("service"):
            asked["service"] = service
        same = realm.origin() == self.base.origin()
        trust = await self._http.trust(self._ca_file if same else self._http.hosts.ca_file(realm))
        if self._credentials is not None and self._credentials.identity_token:
            grant = {"grant_type": "refresh_token", "client_id": "criw", "access_type": "offline"}
            form = grant | asked | {"refresh_token": self._credentials.identity_token}
            request = self._http.session.post(realm, data=form, ssl=trust, allow_redirects=False)
        else:
            basic = self._credentials.basic if self._credentials is not None else ""
            headers = {"Authorization": basic} if basic else {}
            url = realm.extend_query(asked)
            request = self._http.session.get(url, headers=headers, ssl=trust, allow_redirects=False)
        async with request as response:
            if response.status in {401, 403}:
                raise self._denied(await _said(response), known=self._credentials is not None)
            if response.status != 200:
                raise Down(f"{realm.authority}, the token server of {self.base}: HTTP status {response.status}")
            token = _token_of(await read_limited(response, _ANSWER_LIMIT_BYTES) or b"")
        if not token:
            raise Failed(f"cannot authenticate at {self.base} for {self._what}: {realm.authority} answered no token")
        return token

    def _stranger(self, text: str) -> URL:
        """An address the registry names, in its own spelling. Raises Failed for one that nothing can be sent to."""
        try:
            url = URL(text, encoded=True)
            (url.host or "").encode("idna")  # as the resolver will
            if url.port == 0:
                raise ValueError("there is no port 0")
        except ValueError as err:  # UnicodeError is one
            raise Failed(f"cannot pull {self._what}: {self.base} names the address {text[:200]!r}: {err}") from err
        return url

    async def _refusal(self, response: aiohttp.ClientResponse) -> Exception:
        status, said = response.status, await _said(response)
        if status == 404:
            return NotFound(
                f"cannot find {self._what}: {self.base} does not have it{said}; check the name, and whether it needs "
                "credentials"
            )
        if status in {401, 403}:
            return self._denied(said, known=bool(self._authorization))
        if status in _TRY_LATER or status >= 500:
            return Down(f"{self.base}: HTTP status {status}{said}")
        return Failed(f"cannot pull {self._what}: {self.base} answered HTTP status {status}{said}")

    def _denied(self, said: str, *, known: bool) -> Fault:
        remedy = "check the credentials" if known and self._credentials else "give credentials that may pull it"
        return PermissionDenied(
            f"cannot pull {self._what}: {self.base} refuses access to the repository {self._repository}{said}; {remedy}"
        )

    def _reason(self, err: aiohttp.ClientError) -> str:
        if isinstance(err, aiohttp.ServerTimeoutError):
            return f"nothing came for {self._http.stall_timeout_s:g} s"
        if isinstance(err, aiohttp.ClientConnectorError):
            return str(err.os_error.strerror or err.os_error)
        return str(err) or type(err).__name__


async def read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """The whole body; None if it is longer than `limit` bytes."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            return None
    return bytes(body)


async def _said(response: aiohttp.ClientResponse) -> str:
    """What a registry says about its refusal (distribution-spec, error codes), for a message."""
    body = await read_limited(response, _ANSWER_LIMIT_BYTES) or b""
    try:
        problems = json.loads(body)["errors"]
        said = "; ".join(str(one.get("message") or one.get("code")) for one in problems)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""  # a page for people, or nothing
    return f" ({said[:_SAID_LIMIT]})" if said else ""


def _token_of(body: bytes) -> str:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError):
        return ""
    return token if isinstance(token, str) else ""
