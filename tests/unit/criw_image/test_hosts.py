"""Which hosts are asked, in which order, and what each is given."""

from pathlib import Path

import pytest
from yarl import URL

from criw.config.image import Registry
from criw.errors import InvalidArgument
from criw_image.auth import Credentials
from criw_image.hosts import Host, Hosts
from criw_image.reference import parse_reference
from criw_proto.runtime.v1 import AuthConfig

QUAY = parse_reference("quay.example/a/b:1")
GIVEN = AuthConfig(username="given", password="with the request")
CA, OTHER_CA = Path("/etc/ca.pem"), Path("/etc/other.pem")


def test_a_registry_that_is_not_configured_is_asked_over_https() -> None:
    assert Hosts({}).of(QUAY, None) == [Host(URL("https://quay.example"))]
    with_port = parse_reference("quay.example:5000/a/b:1")
    assert Hosts({}).of(with_port, None) == [Host(URL("https://quay.example:5000"))]


def test_docker_hub_s_registry_has_another_name() -> None:
    assert Hosts({}).of(parse_reference("busybox"), None) == [Host(URL("https://registry-1.docker.io"))]


def test_mirrors_come_first_in_their_order_and_are_told_whose_image_it_is() -> None:
    mirrors = ("http://first.example:5000/", "https://second.example/prefix")
    hosts = Hosts({"quay.example": Registry(mirrors=mirrors, plain_http=True)})
    assert hosts.of(QUAY, None) == [
        Host(URL("http://first.example:5000"), query={"ns": "quay.example"}),
        Host(URL("https://second.example/prefix"), query={"ns": "quay.example"}),
        Host(URL("http://quay.example")),
    ]


def test_mirrors_of_docker_hub_are_not_told() -> None:
    hosts = Hosts({"docker.io": Registry(mirrors=("http://mirror.example",))})
    assert [host.query for host in hosts.of(parse_reference("busybox"), None)] == [{}, {}]


def test_the_star_stands_for_registries_not_listed() -> None:
    hosts = Hosts({"*": Registry(mirrors=("http://mirror.example",), ca_file=CA), "listed.example": Registry()})
    assert [host.base.host for host in hosts.of(QUAY, None)] == ["mirror.example", "quay.example"]
    assert [host.base.host for host in hosts.of(parse_reference("listed.example/a/b"), None)] == ["listed.example"]


def test_a_request_s_credentials_are_for_the_registry_and_not_for_its_mirrors() -> None:
    hosts = Hosts({"quay.example": Registry(mirrors=("http://mirror.example",), username="configured", password="x")})
    assert [host.credentials for host in hosts.of(QUAY, GIVEN)] == [None, Credentials("given", "with the request")]
    assert [host.credentials for host in hosts.of(QUAY, None)] == [None, Credentials("configured", "x")]


def test_a_request_s_credentials_may_be_for_a_mirror_by_its_address() -> None:
    hosts = Hosts({"quay.example": Registry(mirrors=("http://mirror.example:5000",))})
    auth = AuthConfig(username="given", password="x", server_address="mirror.example:5000")
    assert [host.credentials for host in hosts.of(QUAY, auth)] == [Credentials("given", "x"), None]


def test_a_mirror_has_credentials_and_authorities_of_its_own_entry_only() -> None:
    hosts = Hosts(
        {
            "quay.example": Registry(mirrors=("https://mirror.example", "https://other.example:444"), ca_file=CA),
            "mirror.example": Registry(username="mirror", password="x", ca_file=OTHER_CA),
            "*": Registry(ca_file=Path("/etc/star.pem")),
        }
    )
    mirror, other, registry = hosts.of(QUAY, None)
    assert (mirror.credentials, mirror.ca_file) == (Credentials("mirror", "x"), OTHER_CA)
    assert (other.credentials, other.ca_file) == (None, CA)  # the authorities are those of whom it stands in for
    assert (registry.credentials, registry.ca_file) == (None, CA)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://quay.example/x", CA),
        ("https://quay.example:443/x", CA),
        ("https://user@quay.example/x", CA),
        ("https://quay.example:444/x", None),
        ("https://cdn.example:5000/x", OTHER_CA),
        ("https://[::1]/x", OTHER_CA),
    ],
)
def test_who_is_trusted_where_a_registry_sends_us_is_by_host_and_port(url: str, expected: Path | None) -> None:
    hosts = Hosts(
        {
            "quay.example": Registry(ca_file=CA),
            "cdn.example:5000": Registry(ca_file=OTHER_CA),
            "[::1]": Registry(ca_file=OTHER_CA),
        }
    )
    assert hosts.ca_file(URL(url)) == expected


def test_credentials_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="cannot use the credentials"):
        Hosts({}).of(QUAY, AuthConfig(auth="not base64!"))
