from ipaddress import IPv4Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from criw_network.builtin.addresses import Addresses, Network, Pool, gateway, mac, parse_ranges
from criw_network.netlink.links import Address


def networks() -> st.SearchStrategy[Network]:
    v4 = st.builds(
        lambda n, p: IPv4Network((n >> (32 - p) << (32 - p), p)), st.integers(1 << 24, 2**32 - 1), st.integers(24, 30)
    )
    v6 = st.builds(
        lambda n, p: ip_network((n >> (128 - p) << (128 - p), p)), st.integers(0, 2**128 - 1), st.integers(8, 126)
    )
    return st.one_of(v4, v6)


@given(networks(), st.integers(1, 40))
def test_addresses_handed_out_are_pods_addresses_and_all_different(network: Network, count: int) -> None:
    pool = Pool(network)
    room = pool.free
    given = [pool.take() for _ in range(min(count, room))]
    ips = {address.ip for address in given}
    assert len(ips) == len(given) == room - pool.free
    assert all(ip in network for ip in ips)
    assert all(address.network == network for address in given)
    assert not ips & {network.network_address, gateway(network).ip}
    assert network.version == 6 or network.broadcast_address not in ips


@given(networks(), st.lists(st.booleans(), max_size=60))
def test_the_pool_knows_what_is_free(network: Network, steps: list[bool]) -> None:
    pool = Pool(network)
    room = pool.free
    held: list[Address] = []
    for take in steps:
        if take and len(held) < room:
            held.append(pool.take().ip)
        elif held:
            pool.give_back(held.pop(0))
        assert pool.free == room - len(held)
    assert len(set(held)) == len(held)


def test_a_freed_address_comes_last() -> None:
    pool = Pool(ip_network("10.0.0.0/29"))
    first = pool.take().ip
    pool.give_back(first)
    given = [pool.take().ip for _ in range(5)]
    assert given == [ip_address(f"10.0.0.{n}") for n in (3, 4, 5, 6, 2)]
    with pytest.raises(ResourceExhausted, match=r"10\.0\.0\.0/29"):
        pool.take()


def test_a_pool_goes_on_where_the_last_one_was() -> None:
    pool = Pool(ip_network("10.0.0.0/24"), last=ip_address("10.0.0.77"))
    assert pool.last == ip_address("10.0.0.77")
    assert pool.take().ip == pool.last == ip_address("10.0.0.78")


def test_an_occupied_address_is_not_given() -> None:
    pool = Pool(ip_network("fd00::/64"))
    pool.occupy(ip_address("fd00::2"))
    assert pool.take().ip == ip_address("fd00::3")


def test_giving_back_twice_frees_one() -> None:
    pool = Pool(ip_network("10.0.0.0/30"))
    address = pool.take().ip
    pool.give_back(address)
    pool.give_back(address)
    assert pool.free == 1


@pytest.mark.parametrize(
    ("cidr", "free"),
    [("10.0.0.0/30", 1), ("10.0.0.0/24", 253), ("10.0.0.0/16", 65533), ("fd00::/126", 2), ("fd00::/112", 65534)],
)
def test_room(cidr: str, free: int) -> None:
    assert Pool(ip_network(cidr)).free == free


def test_ranges_keep_their_order() -> None:
    assert parse_ranges(["fd00::/64", "10.0.0.0/16"]) == (ip_network("fd00::/64"), ip_network("10.0.0.0/16"))
    assert parse_ranges([]) == ()


@given(st.lists(st.text(max_size=20) | networks().map(str), max_size=3))
def test_any_text_is_a_range_or_refused(cidrs: list[str]) -> None:
    try:
        parsed = parse_ranges(cidrs)
    except InvalidArgument as err:
        assert str(err).startswith("cannot use pod range")
    else:
        assert len({network.version for network in parsed}) == len(parsed) == len(cidrs)


@pytest.mark.parametrize(
    "cidr",
    [
        "10.0.0.1",
        "10.0.0.1/24",
        "10.0.0.0/31",
        "fd00::/127",
        "::1/126",
        "0.0.0.0/0",
        "127.0.0.0/8",
        "224.0.0.0/8",
        "fd00::%x }\nflush ruleset\n/64",
        "fe80::/64",
    ],
)
def test_ranges_of_no_use_are_refused(cidr: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot use pod range"):
        parse_ranges([cidr])


def test_two_ranges_of_a_family_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="IPv4"):
        parse_ranges(["10.0.0.0/16", "fd00::/64", "10.1.0.0/16"])


def earlier(cidr: str, *addresses: str) -> Addresses:
    """The range of now, with pods "0", "1", … that have these addresses of earlier ones."""
    held = Addresses(parse_ranges([cidr]), [])
    for number, address in enumerate(addresses):
        held.hold(str(number), [ip_interface(address)])
    return held


def test_ranges_stay_in_force_as_long_as_a_pod_has_an_address_of_them() -> None:
    addresses = earlier("10.1.0.0/24", "10.0.0.2/16", "10.0.0.3/16")
    assert addresses.in_force == parse_ranges(["10.1.0.0/24"]) + parse_ranges(["10.0.0.0/16"])
    addresses.give_back("0")
    assert len(addresses.in_force) == 2
    addresses.give_back("1")
    assert addresses.in_force == addresses.networks == parse_ranges(["10.1.0.0/24"])


@pytest.mark.parametrize(("now", "before"), [("10.0.0.0/16", "10.0.0.9/24"), ("10.0.0.0/24", "10.0.0.9/16")])
def test_of_ranges_with_one_gateway_the_widest_is_in_force(now: str, before: str) -> None:
    assert earlier(now, before).in_force == (ip_network("10.0.0.0/16"),)


def test_a_new_pod_gets_no_address_that_an_old_one_needs() -> None:
    addresses = earlier("10.0.0.0/28", "10.0.0.3/16", "10.0.0.10/29", "10.0.0.5/24")
    taken = [str(addresses.take(f"new {number}")[0].ip) for number in range(addresses.free()[4])]
    assert not {"10.0.0.3", "10.0.0.5", "10.0.0.10", "10.0.0.9"} & set(taken), "9 is the gateway of 10.0.0.8/29"
    for number in range(3):
        addresses.give_back(str(number))
    assert addresses.free() == {4: 4}, "they come back with the pods that needed them"


def test_a_range_whose_gateway_a_pod_has_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match=r"10\.0\.5\.0/24: pod 0 has 10\.0\.5\.1"):
        earlier("10.0.5.0/24", "10.0.5.1/16").check()
    earlier("10.0.5.0/24", "10.0.5.2/16").check()


def test_a_mac_is_local_and_follows_the_address() -> None:
    assert mac(ip_address("10.1.2.3")) == bytes((2, 0xC1, 10, 1, 2, 3))
    one = mac(ip_address("fd00::1:2"))
    assert (len(one), one[0]) == (6, 2)
    assert one == mac(ip_address("fd00::1:2"))
    assert one != mac(ip_address("fd01::1:2")), "two ranges may be in use at a time"
