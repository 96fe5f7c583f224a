import dataclasses
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.config.crew import Config
from criw.errors import InvalidArgument
from criw_ctl import spec
from criw_proto.runtime.v1 import KeyValue, Mount, PodSandboxMetadata, PortMapping, Protocol

ports = st.integers(min_value=1, max_value=65535)


def wish(name: str = "web") -> spec.Wish:
    return spec.Wish(image="busybox", args=["sh"], name=name, envs=[], ports=[], mounts=[])


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("8080:80", PortMapping(host_port=8080, container_port=80)),
        ("53:53/udp", PortMapping(host_port=53, container_port=53, protocol=Protocol.UDP)),
        ("53:53/SCTP", PortMapping(host_port=53, container_port=53, protocol=Protocol.SCTP)),
        ("127.0.0.1:8080:80/tcp", PortMapping(host_ip="127.0.0.1", host_port=8080, container_port=80)),
        ("[::1]:8080:80", PortMapping(host_ip="::1", host_port=8080, container_port=80)),
    ],
)
def test_ports(text: str, mapping: PortMapping) -> None:
    assert spec.parse_port(text) == mapping


@pytest.mark.parametrize("text", ["", "80", ":80", "80:", "0:80", "80:65536", "-1:80", "x:80:80", "80:80/icmp", "٣:80"])
def test_no_ports(text: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot map the port"):
        spec.parse_port(text)


@given(st.ip_addresses(), ports, ports, st.sampled_from(["tcp", "udp", "sctp"]))
def test_a_port_mapping_survives_being_typed(address: object, host: int, container: int, protocol: str) -> None:
    host_ip = f"[{address}]" if ":" in str(address) else str(address)
    found = spec.parse_port(f"{host_ip}:{host}:{container}/{protocol}")
    assert (found.host_ip, found.host_port, found.container_port) == (str(address), host, container)
    assert found.protocol is Protocol[protocol.upper()]


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (spec.parse_port, spec.parse_env, spec.parse_name):
        with suppress(InvalidArgument):
            parse(text)


def test_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    data = str(tmp_path / "data")
    assert spec.parse_mount(f"{data}:/data") == Mount(host_path=data, container_path="/data")
    assert spec.parse_mount("data:/data:ro") == Mount(host_path=data, container_path="/data", readonly=True)
    assert spec.parse_mount("./data:/data:rw").host_path == data


@pytest.mark.parametrize("text", ["", "/tmp", "/tmp:", ":/x", "/tmp:x", "/tmp:/x:no", "/tmp:/x:ro:ro", "/no/such:/x"])
def test_no_mounts(text: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot mount"):
        spec.parse_mount(text)


def test_variables() -> None:
    assert spec.parse_env("KEY=a=b") == KeyValue(key="KEY", value=b"a=b")
    assert spec.parse_env("KEY=") == KeyValue(key="KEY", value=b"")
    for text in ("", "KEY", "=value"):
        with pytest.raises(InvalidArgument, match="KEY=VALUE"):
            spec.parse_env(text)


@pytest.mark.parametrize("name", ["a", "web-1", "a" * 63])
def test_names(name: str) -> None:
    assert spec.parse_name(name) == name


def test_a_name_made_up_is_a_name() -> None:
    name = spec.new_name()
    assert spec.parse_name(name) == name


@pytest.mark.parametrize("name", ["", "Web", "-a", "a-", "a.b", "a/b", "..", "a" * 64, "a\n"])
def test_no_names(name: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot name a pod"):
        spec.parse_name(name)


def test_two_pods_of_one_name_are_told_apart() -> None:
    first, second = (spec.pod_config(Config(), wish()) for _ in range(2))
    assert first.metadata is not None
    assert second.metadata is not None
    assert first.metadata.name == second.metadata.name == "web"
    assert first.metadata.uid != second.metadata.uid
    assert first.log_directory != second.log_directory
    assert first.labels[spec.POD_UID_LABEL] == first.metadata.uid


def test_a_container_keeps_the_entrypoint_and_hides_what_it_should() -> None:
    pod = spec.pod_config(Config(), wish())
    assert pod.metadata is not None
    container = spec.container_config(pod.metadata, wish(), "sha256:1")
    assert container.command == []
    assert container.args == ["sh"]
    assert container.linux is not None
    assert container.linux.security_context is not None
    assert "/proc/kcore" in container.linux.security_context.masked_paths
    assert "/proc/sys" in container.linux.security_context.readonly_paths
    assert not container.linux.security_context.privileged


@pytest.mark.parametrize(
    ("stdin", "tty", "joined", "stdin_once"),
    [
        (True, False, True, True),
        (True, True, True, False),  # who detaches may attach again
        (True, False, False, False),  # left running: whoever attaches later may go and come
        (False, True, True, False),
    ],
)
def test_a_terminal_and_input(stdin: bool, tty: bool, joined: bool, stdin_once: bool) -> None:
    asked = dataclasses.replace(wish(), stdin=stdin, tty=tty, joined=joined)
    made = spec.container_config(PodSandboxMetadata(name="web"), asked, "id")
    assert (made.stdin, made.tty, made.stdin_once) == (stdin, tty, stdin_once)
    assert made.envs == ([KeyValue(key="TERM", value=b"xterm")] if tty else [])


def test_a_terminals_kind_that_was_given_is_kept() -> None:
    given = [KeyValue(key="TERM", value=b"dumb")]
    asked = dataclasses.replace(wish(), tty=True, envs=given)
    assert spec.container_config(PodSandboxMetadata(name="web"), asked, "id").envs == given
