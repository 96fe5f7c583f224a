import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import AlreadyExists, InvalidArgument
from criw_network.hostports import HostPort, Taken, check, parse

addresses = st.sampled_from(["", "0.0.0.0", "::", "10.0.0.1", "10.0.0.2", "127.0.0.1", "fd00::1", "fd00::2"])
ports = st.builds(
    HostPort,
    protocol=st.sampled_from(["tcp", "udp"]),
    host_port=st.integers(1, 3),
    container_port=st.integers(1, 3),
    host_ip=addresses,
)


def packets(port: HostPort) -> set[tuple[str, int, str]]:
    """Which of the packets to some addresses of a host a mapping is for: the meaning of `HostPort`, spelled out."""
    host = ["10.0.0.1", "10.0.0.2", "127.0.0.1", "fd00::1", "fd00::2"]
    matching = {
        "": host,
        "0.0.0.0": [ip for ip in host if ":" not in ip],
        "::": [ip for ip in host if ":" in ip],
    }.get(port.host_ip, [port.host_ip])
    return {(port.protocol, port.host_port, ip) for ip in matching}


@given(ports, ports)
def test_mappings_overlap_when_a_packet_matches_both(one: HostPort, other: HostPort) -> None:
    assert one.overlaps(other) == other.overlaps(one) == bool(packets(one) & packets(other))


@given(st.lists(st.tuples(st.sampled_from("abc"), ports), max_size=30))
def test_no_packet_is_for_two_pods(wanted: list[tuple[str, HostPort]]) -> None:
    taken = Taken()
    owned: dict[tuple[str, int, str], str] = {}
    for pod, port in wanted:
        rivals = {owned[packet] for packet in packets(port) if packet in owned} - {pod}
        if rivals:
            with pytest.raises(AlreadyExists):
                taken.take(pod, [port])
        else:
            taken.take(pod, [port])
            owned |= dict.fromkeys(packets(port), pod)


def test_ports_given_back_are_free() -> None:
    taken = Taken()
    port = HostPort(protocol="tcp", host_port=80, container_port=8080)
    taken.take("a", [port])
    taken.give_back("b", [port])  # not its own
    with pytest.raises(AlreadyExists, match="tcp 80: pod a has it"):
        taken.take("b", [port])
    taken.give_back("a", [port])
    taken.take("b", [port])


def test_a_refused_pod_takes_none_of_its_ports() -> None:
    taken = Taken()
    first, second = (HostPort(protocol="tcp", host_port=n, container_port=1) for n in (1, 2))
    taken.take("a", [second])
    with pytest.raises(AlreadyExists):
        taken.take("b", [first, second])
    taken.take("c", [first])


@given(st.text(max_size=6), st.integers(), st.integers(), st.text(max_size=20))
def test_anything_is_a_mapping_or_refused(protocol: str, host: int, container: int, ip: str) -> None:
    for name in (protocol, "tcp"):
        try:
            port = parse(name, host_port=host, container_port=container, host_ip=ip)
        except InvalidArgument as err:
            assert str(err).startswith("cannot map port")
        else:
            assert 0 < port.host_port < 65536
            assert 0 < port.container_port < 65536
            assert not port.host_ip or str(ipaddress.ip_address(port.host_ip)) == port.host_ip


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fd00::1%x }\nflush ruleset\n"])
def test_an_address_brings_nothing_else_into_the_rules(address: str) -> None:
    with pytest.raises(InvalidArgument, match="zone"):
        parse("udp", host_port=1, container_port=2, host_ip=address)


def test_an_address_is_kept_in_one_form() -> None:
    assert parse("udp", host_port=1, container_port=2, host_ip="FD00:0::1").host_ip == "fd00::1"


def test_a_pod_needs_an_address_of_the_family() -> None:
    port = HostPort(protocol="tcp", host_port=80, container_port=80, host_ip="fd00::1")
    check([port], families=frozenset({4, 6}))
    with pytest.raises(InvalidArgument, match="tcp 80 on fd00::1"):
        check([port], families=frozenset({4}))
