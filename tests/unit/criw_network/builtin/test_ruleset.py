from ipaddress import ip_address, ip_network

from criw_network.builtin import ruleset
from criw_network.builtin.ruleset import Element
from criw_network.pod import HostPort

DUAL = [ip_address("10.0.0.2"), ip_address("fd00::2")]


def port(host_ip: str = "") -> HostPort:
    return HostPort(protocol="sctp", host_port=8080, container_port=80, host_ip=host_ip)


def test_a_port_of_every_address_is_one_element_a_family() -> None:
    both = [
        Element("port4", "sctp . 8080", "10.0.0.2 . 80"),
        Element("port6", "sctp . 8080", "fd00::2 . 80"),
    ]
    assert list(ruleset.elements([port()], DUAL)) == both
    assert list(ruleset.elements([port("0.0.0.0")], DUAL)) == both[:1]
    assert list(ruleset.elements([port("::")], DUAL)) == both[1:]
    assert list(ruleset.elements([port()], DUAL[:1])) == both[:1]


def test_a_port_of_one_address_is_found_by_it() -> None:
    assert list(ruleset.elements([port("192.0.2.1")], DUAL)) == [
        Element("address4", "192.0.2.1 . sctp . 8080", "10.0.0.2 . 80")
    ]
    assert list(ruleset.elements([port("2001:db8::1")], DUAL)) == [
        Element("address6", "2001:db8::1 . sctp . 8080", "fd00::2 . 80")
    ]
    assert list(ruleset.elements([port("2001:db8::1")], DUAL[:1])) == []


def test_a_deletion_names_the_key_only() -> None:
    (element,) = ruleset.elements([port()], DUAL[:1])
    assert ruleset.add("br", [element]) == "add element inet criw_br port4 { sctp . 8080 : 10.0.0.2 . 80 }\n"
    assert ruleset.delete("br", [element]) == "delete element inet criw_br port4 { sctp . 8080 }\n"


def test_only_pods_are_masqueraded() -> None:
    rules = ruleset.replace("br", [ip_network("10.0.0.0/24")], [])
    assert 'oifname != "br" ip saddr 10.0.0.0/24 masquerade' in rules
    assert "ip6 saddr" not in rules
    assert "masquerade" not in ruleset.replace("br", [], []).replace('oifname "br" ip saddr 127.0.0.0/8 masquerade', "")
