"""The image agent: what a container's image is."""

from dataclasses import dataclass
from typing import Final

from criw.rpc.client import call
from criw_proto.criw.image.v1 import ImagesStub, InspectRequest

_AGENT: Final = "criw-image"


@dataclass(frozen=True)
class Image:
    """An image that is on this node."""

    id: str  # config digest
    reference: str  # a repo digest where it has one, else the id
    config: bytes  # its configuration, JSON (OCI image-spec, config.md)


class Images:
    """Its methods raise the agent's faults, and Unavailable while it is away."""

    def __init__(self, stub: ImagesStub) -> None:
        self._stub = stub

    async def inspect(self, image: str) -> Image:
        """The image of a name, digest reference or id. Raises NotFound."""
        found = await call(self._stub.inspect, InspectRequest(image=image), agent=_AGENT)
        return Image(found.id, found.repo_digests[0] if found.repo_digests else found.id, found.config)
