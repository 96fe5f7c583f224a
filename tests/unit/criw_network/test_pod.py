import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_network.pod import parse_port


@given(st.text(max_size=6), st.integers(), st.integers(), st.text(max_size=20))
def test_anything_is_a_mapping_or_refused(protocol: str, host: int, container: int, ip: str) -> None:
    for name in (protocol, "tcp"):
        try:
            port = parse_port(name, host_port=host, container_port=container, host_ip=ip)
        except InvalidArgument as err:
            assert str(err).startswith("cannot map port")
        else:
            assert 0 < port.host_port < 65536
            assert 0 < port.container_port < 65536
            assert not port.host_ip or str(ipaddress.ip_address(port.host_ip)) == port.host_ip


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fd00::1%x }\nflush ruleset\n"])
def test_an_address_brings_nothing_else_into_the_rules(address: str) -> None:
    with pytest.raises(InvalidArgument, match="zone"):
        parse_port("udp", host_port=1, container_port=2, host_ip=address)


def test_an_address_is_kept_in_one_form() -> None:
    assert parse_port("udp", host_port=1, container_port=2, host_ip="FD00:0::1").host_ip == "fd00::1"
