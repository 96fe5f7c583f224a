"""Names of images."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_image.reference import Reference, parse_reference

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("me/app", "docker.io/me/app:latest"),
        ("quay.io/app", "quay.io/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("[fe80::1]/app", "[fe80::1]/app:latest"),
        ("Registry/app", "Registry/app:latest"),
        ("a--b/c__d.e-f", "docker.io/a--b/c__d.e-f:latest"),
        (f"busybox@{SHA256}", f"docker.io/library/busybox@{SHA256}"),
        (f"quay.io/app@{SHA512}", f"quay.io/app@{SHA512}"),
        (f"busybox:1.36@{SHA256}", f"docker.io/library/busybox@{SHA256}"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        (f"a.b/{'x' * 255}:t", f"a.b/{'x' * 255}:t"),
        (f"a.b/c:{'t' * 128}", f"a.b/c:{'t' * 128}"),
    ],
)
def test_a_name_means_its_full_form(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Busybox",
        "busybox:",
        "busybox:a:b",
        "busybox:-tag",
        f"busybox:{'t' * 129}",
        "busybox@",
        "busybox@sha256:0123",
        "busybox@md5:0123456789abcdef0123456789abcdef",
        f"busybox@{SHA256.upper()}",
        f"busybox@{SHA256}@{SHA256}",
        "a//b",
        "/busybox",
        "busybox/",
        "quay.io/",
        "a.b/c_-d",
        "a.b/_c",
        "-a.b/c",
        "a..b/c",
        "a.b:x/c",
        "a.b:0/c",
        "a.b:65536/c",
        "[::1/c",
        "[:::::]/c",
        f"{'a' * 64}.b/c",
        f"{'a.' * 127}b/c",
        f"a.b/{'x' * 256}",
        "https://quay.io/app",
        "busybox\n",
        "büsybox",
        "0123456789abcdef" * 4,
    ],
)
def test_a_malformed_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^cannot use"):
        parse_reference(text)


part = st.from_regex(r"[a-z0-9]+(?:(?:[._]|__|-{1,3})[a-z0-9]+){0,3}", fullmatch=True)
repository = st.lists(part, min_size=1, max_size=4).map("/".join).filter(lambda text: len(text) < 240)
label = st.from_regex(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?", fullmatch=True)
port = st.integers(1, 65535)
name = st.lists(label, min_size=2, max_size=4).map(".".join)
address = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")
host = st.one_of(name, address, st.builds("{}:{}".format, name | address, port))
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)
digest = st.from_regex(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", fullmatch=True)
references = st.builds(Reference, host, repository, tag=tag) | st.builds(Reference, host, repository, digest=digest)


@given(references)
def test_a_reference_survives_being_printed(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.text() | st.text(alphabet="aA1.:/@-_[]"))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        parsed = parse_reference(text)
        assert bool(parsed.tag) != bool(parsed.digest)
