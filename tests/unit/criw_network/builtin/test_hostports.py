import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import AlreadyExists, InvalidArgument
from criw_network.builtin.hostports import Taken, check
from criw_network.pod import HostPort

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


def test_a_pod_needs_an_address_of_the_family() -> None:
    port = HostPort(protocol="tcp", host_port=80, container_port=80, host_ip="fd00::1")
    check([port], families=frozenset({4, 6}))
    with pytest.raises(InvalidArgument, match="tcp 80 on fd00::1"):
        check([port], families=frozenset({4}))
