"""Where an image can come from: which hosts are asked, in which order, with whose credentials and trusting whom.

The mirrors configured for a registry come first, then the registry itself. A mirror is asked for the repository's path
without the registry's host, as Docker's mirrors are; for registries other than Docker Hub the host goes along as
`?ns=`, as containerd does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from yarl import URL

from criw.config.image import Registry
from criw_image.auth import Credentials, credentials_of
from criw_image.reference import DOCKER_HUB, Reference
from criw_proto.runtime.v1 import AuthConfig

_DOCKER_HUB_SERVER: Final = "registry-1.docker.io"
_OTHERS: Final = "*"


@dataclass(frozen=True)
class Host:
    """One of them. `base` is what `/v2` is below, `query` goes along with every request."""

    base: URL
    credentials: Credentials | None = None
    ca_file: Path | None = None
    query: Mapping[str, str] = field(default_factory=dict)


class Hosts:
    """What is configured for registries, by host (and port); "*" stands for those not listed."""

    def __init__(self, registries: Mapping[str, Registry]) -> None:
        self._registries = registries

    def of(self, reference: Reference, auth: AuthConfig | None) -> list[Host]:
        """Where to get an image, the registry itself last; credentials are the request's, else those configured.

        Raises InvalidArgument for credentials that cannot be read.
        """
        settings = self._settings(reference.host)
        query = {} if reference.host == DOCKER_HUB else {"ns": reference.host}
        found = []
        for mirror in settings.mirrors:
            base = URL(mirror.rstrip("/"))
            own = self._registries.get(_authority(base)) or Registry()
            given = credentials_of(auth, host=_authority(base), registry=reference.host)
            found.append(Host(base, given or _configured(own), own.ca_file or settings.ca_file, query))
        server = _DOCKER_HUB_SERVER if reference.host == DOCKER_HUB else reference.host
        base = URL(f"{'http' if settings.plain_http else 'https'}://{server}")
        given = credentials_of(auth, host=reference.host, registry=reference.host)
        return [*found, Host(base, given or _configured(settings), settings.ca_file)]

    def ca_file(self, url: URL) -> Path | None:
        """Whom to trust, besides the system's authorities, where one of the hosts sends us."""
        return self._settings(_authority(url)).ca_file

    def _settings(self, host: str) -> Registry:
        return self._registries.get(host) or self._registries.get(_OTHERS) or Registry()


def _authority(url: URL) -> str:
    """Host and port as a reference has them: the port only where it is not the scheme's."""
    return url.authority.rpartition("@")[2] if not url.is_default_port() else url.host_subcomponent or ""


def _configured(settings: Registry) -> Credentials | None:
    return Credentials(username=settings.username, password=settings.password) if settings.username else None
