import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw_network.netlink import Message, Netlink, attribute, attributes, messages_in, nested

kinds = st.integers(1, 0x3FFF)
fields = st.lists(st.tuples(kinds, st.binary(max_size=40)), max_size=8)


@given(fields)
def test_attributes_survive_being_packed(wanted: list[tuple[int, bytes]]) -> None:
    raw = b"".join(attribute(kind, value) for kind, value in wanted)
    assert len(raw) % 4 == 0
    assert list(attributes(raw)) == wanted


@given(kinds, fields)
def test_nested_attributes_too(outer: int, wanted: list[tuple[int, bytes]]) -> None:
    ((kind, inside),) = attributes(nested(outer, *(attribute(*field) for field in wanted)))
    assert (kind, list(attributes(inside))) == (outer, wanted)


@given(st.binary(max_size=200))
def test_any_bytes_can_be_read(raw: bytes) -> None:
    assert sum(len(value) + 4 for _, value in attributes(raw)) <= len(raw) + 4
    assert sum(len(payload) + 16 for *_, payload in messages_in(raw)) <= len(raw) + 16


def test_text_ends_with_zero_and_numbers_are_the_hosts() -> None:
    assert list(attributes(attribute(3, "eth0") + attribute(4, 1500))) == [(3, b"eth0\0"), (4, struct.pack("=I", 1500))]


def test_a_refusal_names_what_was_asked() -> None:
    rtm_dellink, no_such_index = 17, 0x7FFFFFF0
    message = Message(rtm_dellink, struct.pack("=BxHiII", 0, 0, no_such_index, 0, 0), what="delete link x")
    with Netlink() as netlink:
        for _ in range(2):  # and the socket goes on working
            with pytest.raises(OSError, match=r"delete link x: (No such device|Operation not permitted)"):
                netlink.run(message, message)
        netlink.run()
