"""Names of images: `host/repository:tag` and `host/repository@digest`, with Docker's short forms.

The grammar is the one of the distribution project's reference package, which Docker and Kubernetes users know:
`busybox` is `docker.io/library/busybox:latest`. Where both a tag and a digest are given the digest decides, and the
tag is dropped.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from criw.errors import InvalidArgument

DOCKER_HUB: Final = "docker.io"
_DOCKER_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_OFFICIAL: Final = "library/"
_DEFAULT_TAG: Final = "latest"
_REPOSITORY_LIMIT: Final = 255
_HOST_LIMIT: Final = 253

_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[([a-fA-F0-9:]+)\])(?::([0-9]{{1,5}}))?")
_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_BARE_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """A full name. Exactly one of `tag` and `digest` is set."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Host and repository."""
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def is_digest(text: str) -> bool:
    """Whether `text` is a digest of an algorithm we verify (OCI image-spec descriptor.md)."""
    return _DIGEST.fullmatch(text) is not None


def same_algorithm(one: str, other: str) -> bool:
    """Whether two digests can be compared: content has one of each algorithm."""
    return one.partition(":")[0] == other.partition(":")[0]


def canonical_host(host: str) -> str:
    """The one name of a registry that has several: Docker Hub's are all `docker.io`."""
    return DOCKER_HUB if host in _DOCKER_HUB_NAMES else host


def parse_reference(text: str) -> Reference:
    """The full name that `text` is or is short for. Raises InvalidArgument."""
    if _BARE_ID.fullmatch(text):
        raise _refused(text, "64 hex digits are an id, not a name")
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _refused(text, "after @ there must be a sha256 or sha512 digest")
    host, path = _split_host(rest)
    repository, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _refused(text, f"{tag!r} is not a tag (up to 128 letters, digits, '_', '.' and '-')")
    if not _is_host(host):
        raise _refused(text, f"{host!r} is not a registry's host name")
    if not _REPOSITORY.fullmatch(repository):
        raise _refused(text, f"{repository!r} is not a repository's name (lower-case parts, '/' between them)")
    host = canonical_host(host)
    if host == DOCKER_HUB and "/" not in repository:
        repository = _OFFICIAL + repository
    if len(repository) > _REPOSITORY_LIMIT:
        raise _refused(text[:80], f"the repository's name is longer than {_REPOSITORY_LIMIT} characters")
    if digest:
        return Reference(host, repository, digest=digest)
    return Reference(host, repository, tag=tag or _DEFAULT_TAG)


def _split_host(text: str) -> tuple[str, str]:
    """The first part is a host if it can be nothing else: it has a dot, a port or a capital, or is localhost."""
    first, slash, rest = text.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        return first, rest
    return DOCKER_HUB, text


def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    if found is None or len(text) > _HOST_LIMIT:
        return False
    address, port = found.groups()
    return (address is None or _is_ipv6(address)) and (port is None or 0 < int(port) < 65536)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _refused(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"cannot use {text!r} as an image name: {why}")
