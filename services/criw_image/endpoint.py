"""One place an image can come from, a registry or a mirror of it, spoken to in HTTP (OCI distribution-spec).

Every request is answered, authenticated, redirected or refused here.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
from yarl import URL

from criw.errors import Failed, NotFound
from criw_image.auth import parse_challenges
from criw_image.foreign import cleaned, refusal_in
from criw_image.hosts import Host
from criw_image.reference import Reference
from criw_image.tokens import ANSWER_LIMIT_BYTES, Authorization
from criw_image.transport import REDIRECT_LIMIT, Down, Http, reason, redirected

_TRY_LATER: Final = frozenset({408, 429})  # besides 5xx


class Endpoint:
    """The repository of an image at one host, for one pull: the tokens it is given are kept no longer."""

    def __init__(self, http: Http, host: Host, reference: Reference) -> None:
        self.base = host.base
        self.http = http
        self._reference = reference
        self._root = host.base / "v2" / reference.repository
        self._query = host.query
        own = Authorization(http, host.base, reference, credentials=host.credentials, ca_file=host.ca_file)
        self._authorizations = {host.base.origin(): own}

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
                response = await self._follow(stack, method, url, headers or {})
                if response.status not in (200, 206):
                    raise await self._refusal(response)
                yield response
        except aiohttp.ClientConnectorCertificateError as err:
            raise Failed(
                f"cannot trust {self.base} for {self._reference}: {cleaned(err.certificate_error)}; "
                f"set ca_file for it in [image.registries] to the authority that signed its certificate"
            ) from err
        except aiohttp.ClientConnectorSSLError as err:
            raise Failed(
                f"cannot speak TLS with {self.base} for {self._reference}: {cleaned(err.os_error)}; "
                "if it is a plain-HTTP registry, set plain_http for it in [image.registries]"
            ) from err
        except aiohttp.ClientError as err:
            raise Down(f"{self.base}: {reason(err)}") from err

    async def _follow(
        self, stack: contextlib.AsyncExitStack, method: str, url: URL, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        for _ in range(REDIRECT_LIMIT + 1):
            response = await self._answer(stack, method, url, headers)
            target = redirected(response, what=f"pull {self._reference}")
            if target is None:
                return response
            response.release()
            url = target
        raise Failed(f"cannot pull {self._reference}: {self.base} redirects more than {REDIRECT_LIMIT} times")

    async def _answer(
        self, stack: contextlib.AsyncExitStack, method: str, url: URL, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """One host's answer: where it challenges us, the one to the second request."""
        authorization = self._authorization(url)
        for again in (True, False):  # the second time with an answer to the challenge, or a fresh token
            used = authorization.header
            sent = {**headers, "Authorization": used} if used else headers
            response = await self.http.request(stack, method, url, headers=sent, ca_file=authorization.ca_file)
            if response.status != 401:
                return response
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            body = await self._body(response)
            if not again or not await authorization.answer(challenges, refused=used):
                break
        raise authorization.denied(response.status, body)

    def _authorization(self, url: URL) -> Authorization:
        """Of the host of `url`: one we are redirected to is shown no credentials, but may give tokens of its own."""
        origin = url.origin()
        if origin not in self._authorizations:
            self._authorizations[origin] = Authorization(
                self.http, origin, self._reference, credentials=None, ca_file=self.http.hosts.ca_file(url)
            )
        return self._authorizations[origin]

    async def _refusal(self, response: aiohttp.ClientResponse) -> Exception:
        status, body = response.status, await self._body(response)
        said = refusal_in(body)
        if status == 404:
            return NotFound(
                f"cannot find {self._reference}: not found, {self.base} does not have it{said}; check the name, and "
                "whether it needs credentials"
            )
        if status == 403:
            return self._authorization(response.url).denied(status, body)
        if status in _TRY_LATER or status >= 500:
            return Down(f"{self.base}: HTTP status {status}{said}")
        return Failed(f"cannot pull {self._reference}: {self.base} answered HTTP status {status}{said}")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        return await self.http.read(response, ANSWER_LIMIT_BYTES) or b""
