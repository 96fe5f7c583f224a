from ipaddress import IPv4Address

import pytest

from criw import kernel
from criw_network.netlink import links
from criw_network.netlink.links import index_of
from criw_network.netlink.socket import Netlink

LOOPBACK = 1


def test_a_refusal_names_what_was_asked() -> None:
    deletion = links.delete_link("no-such-link")
    with Netlink() as netlink:
        for _ in range(2):  # and the socket goes on working
            with pytest.raises(OSError, match=r"delete link no-such-link: (No such device|Operation not permitted)"):
                netlink.run(deletion, deletion)
        netlink.run()


def test_what_is_asked_for_and_not_there_is_refused() -> None:
    with Netlink() as netlink, pytest.raises(OSError, match="look at link no-such-link: No such device"):
        links.link(netlink, "no-such-link")


def test_a_link_is_found_by_name_in_a_list_and_by_its_index() -> None:
    with Netlink() as netlink:
        found = links.link(netlink, "lo")
        assert (found.index, found.name, found.alias, found.master) == (LOOPBACK, "lo", "", 0)
        assert found in list(links.links(netlink))
        assert links.counters(netlink, LOOPBACK).rx_bytes >= 0
    assert index_of("lo") == LOOPBACK


@pytest.mark.root
async def test_the_first_refusal_of_a_batch_is_told_with_the_kernels_reason_and_the_rest_is_done() -> None:
    def batch() -> str:
        kernel.unshare(kernel.CLONE_NEWNET)
        with Netlink() as netlink:
            with pytest.raises(OSError) as caught:
                netlink.run(
                    links.set_up(LOOPBACK),
                    links.default_route(LOOPBACK, IPv4Address("192.0.2.1")),
                    links.delete_link("no-such-link"),
                    links.new_bridge("br", mac=bytes((2, 0, 0, 0, 0, 1)), mtu=1400),
                )
            assert links.link(netlink, "br").index == index_of("br")
        return str(caught.value)

    refusal = await kernel.in_fresh_thread(batch)
    assert "add the default route by 192.0.2.1: Network is unreachable: Nexthop has invalid gateway" in refusal
