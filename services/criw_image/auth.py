"""Who we are to a registry: credentials of a request, the registry's challenges, and the tokens it trades for them.

RFC 9110 section 11 (challenges), RFC 7617 (Basic), and the distribution project's token specification: a 401 names a
token server, which gives a short-lived bearer token for the credentials and the scope asked for.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from criw.errors import InvalidArgument
from criw_image.foreign import can_be_sent
from criw_image.reference import canonical_host
from criw_proto.runtime.v1 import AuthConfig

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_WORD_68: Final = r"[A-Za-z0-9._~+/-]+=*"
_PARAMETER: Final = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))')
_SCHEME: Final = re.compile(rf"({_WORD})(?:\s+|(?=,)|$)")
_SECRET: Final = re.compile(rf"{_WORD_68}(?=\s*(?:,|$))")
_SPACE: Final = re.compile(r"[\s,]*")
_ESCAPE: Final = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Credentials:
    """One of: a registry token, an identity token, a user name with its password."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The Authorization header of RFC 7617; empty without a user name."""
        if not self.username:
            return ""
        return f"Basic {base64.b64encode(f'{self.username}:{self.password}'.encode()).decode()}"


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate that a registry offers. The scheme and the parameters' names are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def credentials_of(auth: AuthConfig | None, *, host: str, registry: str) -> Credentials | None:
    """What of a pull request's credentials may be sent to `host`, in a pull from `registry`.

    Credentials without a server address are for the registry the image is named after, and for no mirror of it.
    Raises InvalidArgument for an `auth` that is not base64 of user:password, and for what cannot be sent.
    """
    if auth is None:
        return None
    meant_for = _host_of(auth.server_address) if auth.server_address else registry
    if meant_for != host:
        return None
    if auth.registry_token:
        if not can_be_sent(auth.registry_token):
            raise InvalidArgument("cannot use the credentials: registry_token has characters that cannot be sent")
        return Credentials(registry_token=auth.registry_token)
    if auth.identity_token:
        return Credentials(identity_token=auth.identity_token)
    if auth.username:
        return Credentials(username=auth.username, password=auth.password)
    if auth.auth:
        username, password = _decoded(auth.auth)
        return Credentials(username=username, password=password)
    return None


def _host_of(server_address: str) -> str:
    """Host and port of what credential stores keep: `host`, `host:port` or a URL such as https://index.docker.io/v1/."""
    address = server_address if "://" in server_address else f"//{server_address}"
    try:
        return canonical_host(urlsplit(address).netloc.rpartition("@")[2])
    except ValueError as err:
        raise InvalidArgument(f"cannot use the credentials: server_address {server_address!r} is none") from err


def _decoded(auth: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth, validate=True).rstrip(bytes(1)).decode()
    except ValueError as err:  # of base64, of text that is not ASCII, of bytes that are not UTF-8
        raise InvalidArgument("cannot use the credentials: auth is not base64 of user:password") from err
    username, colon, password = text.partition(":")
    if not colon or not username:
        raise InvalidArgument("cannot use the credentials: auth is not base64 of user:password")
    return username, password


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers, in order. What cannot be read is left out."""
    return [challenge for header in headers for challenge in _challenges(header)]


def _challenges(header: str) -> Iterable[Challenge]:
    position = _skip_space(header, 0)
    while scheme := _SCHEME.match(header, position):
        parameters: dict[str, str] = {}
        position = _skip_space(header, scheme.end())
        while found := _PARAMETER.match(header, position):
            name, quoted, plain = found.groups()
            parameters[name.lower()] = plain if quoted is None else _ESCAPE.sub(r"\1", quoted)
            position = _skip_space(header, found.end())
        yield Challenge(scheme[1].lower(), parameters)
        if not parameters and (secret := _SECRET.match(header, position)) and header[scheme.end() - 1].isspace():
            position = _skip_space(header, secret.end())


def _skip_space(header: str, position: int) -> int:
    space = _SPACE.match(header, position)
    assert space is not None
    return space.end()
