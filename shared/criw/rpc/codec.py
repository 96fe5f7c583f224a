"""What both ends of a connection agree on: how messages become bytes, and how much is sent unasked."""

from typing import Final

import betterproto2
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError

_WINDOW: Final = 16 * 1024 * 1024  # one reply of the kubelet's largest size without waiting for window updates
SETTINGS: Final = Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW)


class Codec(CodecBase):
    """Protobuf messages, and bytes that are serialised already: those pass as they are, in both directions."""

    __content_subtype__ = "proto"

    def encode(self, message: betterproto2.Message | bytes, message_type: type[betterproto2.Message | bytes]) -> bytes:
        return message if isinstance(message, bytes) else bytes(message)

    def decode(self, data: bytes, message_type: type[betterproto2.Message | bytes]) -> betterproto2.Message | bytes:
        if issubclass(message_type, bytes):
            return data
        try:
            return message_type.parse(data)
        except Exception as err:  # betterproto2 raises many kinds for bytes that are no message
            raise GRPCError(Status.INVALID_ARGUMENT, f"cannot read the request as a {message_type.__name__}") from err
