"""Credentials and challenges."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_image.auth import Challenge, Credentials, credentials_of, parse_challenges
from criw_proto.runtime.v1 import AuthConfig

REGISTRY = "quay.io"


def given_to(host: str, **fields: str) -> Credentials | None:
    return credentials_of(AuthConfig(**fields), host=host, registry=REGISTRY)


def encoded(text: bytes) -> str:
    return base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"username": "u", "password": "p"}, Credentials(username="u", password="p")),
        ({"auth": encoded(b"u:p:q")}, Credentials(username="u", password="p:q")),
        ({"auth": encoded(b"u:p\0\0")}, Credentials(username="u", password="p")),
        ({"identity_token": "i"}, Credentials(identity_token="i")),
        ({"registry_token": "r"}, Credentials(registry_token="r")),
        ({"registry_token": "r", "identity_token": "i", "username": "u"}, Credentials(registry_token="r")),
        ({"identity_token": "i", "username": "u", "password": "p"}, Credentials(identity_token="i")),
        ({}, None),
    ],
)
def test_the_first_that_is_set_counts(fields: dict[str, str], expected: Credentials | None) -> None:
    assert given_to(REGISTRY, **fields) == expected


@pytest.mark.parametrize(
    ("address", "host", "sent"),
    [
        ("", "quay.io", True),
        ("", "mirror:5000", False),
        ("quay.io", "quay.io", True),
        ("https://quay.io/v1/", "quay.io", True),
        ("quay.io", "mirror:5000", False),
        ("mirror:5000", "mirror:5000", True),
        ("http://mirror:5000", "mirror:5000", True),
        ("mirror:5000", "quay.io", False),
        ("https://index.docker.io/v1/", "docker.io", True),
        ("https://index.docker.io/v1/", "quay.io", False),
        ("https://quay.io.evil.example/", "quay.io", False),
        ("https://quay.io@evil.example/", "quay.io", False),
    ],
)
def test_credentials_go_only_where_they_are_meant_for(address: str, host: str, sent: bool) -> None:
    assert (given_to(host, server_address=address, username="u", password="p") is not None) == sent


@pytest.mark.parametrize("auth", ["%%%", encoded(b"no colon"), encoded(b":p"), encoded(b"\xff\xff:p")])
def test_an_unreadable_auth_is_refused_without_being_told(auth: str) -> None:
    with pytest.raises(InvalidArgument, match="base64") as refused:
        given_to(REGISTRY, auth=auth)
    assert auth not in str(refused.value)


def test_secrets_are_not_printed() -> None:
    shown = repr(Credentials(username="u", password="hidden", identity_token="hidden", registry_token="hidden"))
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://a/token",service="s, t",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://a/token", "service": "s, t", "scope": "repository:a/b:pull,push"})],
        ),
        (['Basic realm="a \\"b\\""'], [("basic", {"realm": 'a "b"'})]),
        (["BASIC Realm=x"], [("basic", {"realm": "x"})]),
        (["Basic realm=x, Bearer realm=y"], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (["Basic realm=x", "Bearer realm = y"], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (["Negotiate"], [("negotiate", {})]),
        (["Negotiate, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Negotiate a87421000492aa874209af8bc028==, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        ([""], []),
        (['"'], []),
        ([], []),
    ],
)
def test_challenges_are_read(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(headers) == [Challenge(scheme, parameters) for scheme, parameters in expected]


word = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,10}", fullmatch=True)
value = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
offered = st.builds(Challenge, word.map(str.lower), st.dictionaries(word.map(str.lower), value, min_size=1, max_size=4))


def printed(challenge: Challenge) -> str:
    escaped = {name: re.sub(r"([\\\"])", r"\\\1", text) for name, text in challenge.parameters.items()}
    return f"{challenge.scheme} " + ", ".join(f'{name}="{text}"' for name, text in escaped.items())


@given(st.lists(offered, max_size=3))
def test_challenges_survive_being_printed(challenges: list[Challenge]) -> None:
    assert parse_challenges([", ".join(map(printed, challenges))]) == challenges


@given(st.lists(st.text() | st.text(alphabet='a="\\, ')))
def test_any_header_is_read(headers: list[str]) -> None:
    parse_challenges(headers)


@pytest.mark.parametrize(
    "auth",
    [
        AuthConfig(registry_token="a\r\nX-Injected: b"),
        AuthConfig(auth="äöü="),
        AuthConfig(username="u", password="p", server_address="http://["),
    ],
)
def test_credentials_that_cannot_be_sent_are_the_request_s_fault(auth: AuthConfig) -> None:
    with pytest.raises(InvalidArgument, match="cannot use the credentials"):
        credentials_of(auth, host=REGISTRY, registry=REGISTRY)
