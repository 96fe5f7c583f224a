"""The gRPC face: a session is described, a URL comes back."""

from criw.errors import InvalidArgument
from criw_proto.criw.streams.v1 import OpenRequest, OpenResponse, StreamsBase
from criw_streams.tokens import Tokens


class StreamsRpc(StreamsBase):
    """criw.streams.v1.Streams. `base` is what the URLs begin with."""

    def __init__(self, tokens: Tokens, base: str) -> None:
        self._tokens = tokens
        self._base = base

    async def open(self, message: OpenRequest) -> OpenResponse:
        described = (message.exec, message.attach, message.port_forward)
        session = next((one for one in described if one is not None), None)
        if session is None:
            raise InvalidArgument("cannot open a session: the request describes none")
        return OpenResponse(url=f"{self._base}/{self._tokens.issue(session)}")
