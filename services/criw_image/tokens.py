"""What we show to one host in one pull: its challenges are answered, with credentials or with the tokens they buy.

Credentials go to the host they are meant for and, as the token specification has it, to the token server it names;
never to where either of them redirects.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from criw.errors import Failed, Fault, PermissionDenied
from criw_image.auth import Challenge, Credentials
from criw_image.foreign import address, cleaned, refusal_in, token_in
from criw_image.reference import Reference
from criw_image.transport import REDIRECT_LIMIT, Down, Http, redirected

ANSWER_LIMIT_BYTES: Final = 1024 * 1024  # of a token, or of what is said about an error
_CLIENT: Final = {"client_id": "criw"}
_NOT_THIS_METHOD: Final = frozenset({404, 405, 501})


class Authorization:
    """For the host at `base`; `header` is what answers its challenges so far, if anything does."""

    def __init__(
        self, http: Http, base: URL, reference: Reference, *, credentials: Credentials | None, ca_file: Path | None
    ) -> None:
        self.ca_file = ca_file
        self.header = ""
        if credentials is not None and credentials.registry_token:
            self.header = f"Bearer {credentials.registry_token}"
        self._http = http
        self._base = base
        self._reference = reference
        self._credentials = credentials
        self._answering = asyncio.Lock()

    async def answer(self, challenges: Sequence[Challenge], *, refused: str) -> bool:
        """Get what answers one of the challenges; False if we have nothing but what was `refused` already."""
        async with self._answering:
            if self.header != refused:
                return True  # another download was faster
            if self._credentials is not None and self._credentials.registry_token:
                return False
            for challenge in challenges:
                if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                    self.header = f"Bearer {await self._token(challenge.parameters)}"
                    return True
                if challenge.scheme == "basic" and self._credentials is not None and self._credentials.basic:
                    self.header = self._credentials.basic
                    return self.header != refused
            return False

    def denied(self, status: int, body: bytes) -> Fault:
        """The refusal that an answer with status 401 or 403 is."""
        remedy = "check the credentials" if self._credentials else "give credentials that may pull it"
        return PermissionDenied(
            f"cannot pull {self._reference}: {self._base} refuses access to the repository "
            f"{self._reference.repository}: {'unauthorized' if status == 401 else 'denied'}{refusal_in(body)}; {remedy}"
        )

    async def _token(self, parameters: Mapping[str, str]) -> str:
        what = f"authenticate at {self._base} for {self._reference}"
        try:
            realm = address(parameters["realm"])
        except ValueError as err:
            named = cleaned(parameters["realm"])
            raise Failed(f"cannot {what}: its token server is {named!r}: {cleaned(err)}") from err
        if realm.scheme == "http" and self._base.scheme == "https" and self._credentials is not None:
            raise Failed(f"cannot {what}: it wants the credentials sent over plain HTTP to {realm.authority}")
        asked = {"scope": parameters.get("scope") or f"repository:{self._reference.repository}:pull"}
        if service := parameters.get("service"):
            asked["service"] = service
        credentials = self._credentials or Credentials()
        if credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "access_type": "offline",
                "refresh_token": credentials.identity_token,
            }
            status, body = await self._ask("POST", realm, what, form=_CLIENT | form | asked)
        else:
            status, body = await self._ask("GET", realm.extend_query(asked), what, basic=credentials.basic)
            if status in _NOT_THIS_METHOD and credentials.username:
                form = {"grant_type": "password", "username": credentials.username, "password": credentials.password}
                status, body = await self._ask("POST", realm, what, form=_CLIENT | form | asked)
        if status in {401, 403}:
            raise self.denied(status, body)
        if status != 200:
            raise Down(f"{realm.authority}, the token server of {self._base}: HTTP status {status}{refusal_in(body)}")
        if not (token := token_in(body)):
            raise Failed(f"cannot {what}: {realm.authority} answered no token")
        return token

    async def _ask(
        self, method: str, realm: URL, what: str, *, basic: str = "", form: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer, wherever the token server sends us for it."""
        url = realm
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(REDIRECT_LIMIT + 1):
                headers = {"Authorization": basic} if basic and url.origin() == realm.origin() else {}
                response = await self._http.request(
                    stack, method, url, headers=headers, form=form, ca_file=self._ca_file_for(url)
                )
                target = redirected(response, what=what)
                if target is None:
                    return response.status, await self._body(response)
                if form is not None and target.origin() != realm.origin():
                    raise Failed(f"cannot {what}: {realm.authority} sends the credentials on to {target.authority}")
                url = target
        raise Failed(f"cannot {what}: {realm.authority} redirects more than {REDIRECT_LIMIT} times")

    def _ca_file_for(self, url: URL) -> Path | None:
        return self.ca_file if url.origin() == self._base.origin() else self._http.hosts.ca_file(url)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        return await self._http.read(response, ANSWER_LIMIT_BYTES) or b""
