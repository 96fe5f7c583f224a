from collections.abc import Mapping
from pathlib import Path

import pytest
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError

from criw.rpc.client import Channel
from criw.rpc.server import Servable, serialized
from criw_proto.criw.network.v1 import AttachRequest, AttachResponse, NetworkStub
from support.serving import Scripted, raw_call, serving

ATTACH = "/criw.network.v1.Network/Attach"
POD = AttachRequest(pod_id="p")


async def nothing(_: str) -> None:
    pass


async def test_serialised_requests_and_replies_pass_as_they_are(path: Path, channel: Channel) -> None:
    class Bytes(Servable):
        def __mapping__(self) -> Mapping[str, Handler]:
            return {**Scripted(nothing).__mapping__(), **serialized(ATTACH, AttachRequest, self.answer)}

        async def answer(self, request: AttachRequest) -> bytes:
            return bytes(AttachResponse(netns_path=f"/{request.pod_id}"))

    async with serving(path, Bytes()):
        assert await raw_call(channel, ATTACH, bytes(POD)) == bytes(AttachResponse(netns_path="/p"))
        assert await NetworkStub(channel).attach(POD) == AttachResponse(netns_path="/p")


async def test_bytes_that_are_no_message_are_refused(path: Path, channel: Channel) -> None:
    service = Scripted(nothing)
    async with serving(path, service):
        with pytest.raises(GRPCError, match="AttachRequest") as caught:
            await raw_call(channel, ATTACH, b"\x0a\xff")  # a string longer than the message
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert service.calls == []
