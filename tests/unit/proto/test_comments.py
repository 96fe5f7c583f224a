"""Protocols are read by people: what a name does not say, a comment does."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

# Numbers of the parts of a path in SourceCodeInfo (google/protobuf/descriptor.proto): where a comment belongs.
MESSAGE, ENUM, SERVICE, METHOD = 4, 5, 6, 2


def uncommented(file: FileDescriptorProto, *, messages: bool) -> Iterator[str]:
    said = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
    for s, service in enumerate(file.service):
        for m, method in enumerate(service.method):
            if (SERVICE, s, METHOD, m) not in said:
                yield f"rpc {service.name}.{method.name}"
    for e, enum in enumerate(file.enum_type):
        if messages and (ENUM, e) not in said:
            yield f"enum {enum.name}"
    for m, message in enumerate(file.message_type):
        # A request and its reply are what their method's comment speaks of.
        if messages and (MESSAGE, m) not in said and not message.name.endswith(("Request", "Response")):
            yield f"message {message.name}"


def test_every_method_has_a_comment(descriptors: FileDescriptorSet) -> None:
    assert [found for file in descriptors.file for found in uncommented(file, messages=False)] == []


@pytest.mark.parametrize("part", ["image", "network", "storage"])
def test_our_own_protocols_explain_every_message(part: str, descriptors: FileDescriptorSet) -> None:
    (file,) = (file for file in descriptors.file if file.name == f"criw/{part}/v1/{part}.proto")
    assert list(uncommented(file, messages=True)) == []
