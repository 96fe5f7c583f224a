import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import DnsConfig
from criw_supervisor.ledger.places import PodFiles
from criw_supervisor.pods import etc, namespaces
from criw_supervisor.pods.etc import EtcPlan, hostname, is_hostname, resolv_conf

HOST_RESOLV_CONF = Path("/etc/resolv.conf")


@pytest.mark.parametrize("name", ["a", "web-1", "web.example.org", "web.example.org.", "x" * 64, "a_b", "-a", "ŵ" * 32])
def test_every_hostname_the_kernel_takes_is_given(name: str) -> None:
    assert is_hostname(name)
    assert hostname(name, pod_name="web", pod_id="p" * 64, host_network=False) == name


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a\0", "x" * 65, "ŵ" * 33, "a\n", "a\u2028b"])
def test_what_the_kernel_or_a_hosts_file_cannot_take_as_a_name_is_refused(name: str) -> None:
    assert not is_hostname(name)
    with pytest.raises(InvalidArgument, match="cannot use hostname"):
        hostname(name or " ", pod_name="web", pod_id="p" * 64, host_network=False)


def test_without_one_it_is_the_pods_name_or_its_id_where_that_cannot_be_one() -> None:
    assert hostname("", pod_name="web", pod_id="p" * 64, host_network=False) == "web"
    assert hostname("", pod_name="x" * 65, pod_id="0123456789abcdef", host_network=False) == "0123456789ab"


def test_on_the_hosts_network_it_is_the_hosts() -> None:
    assert hostname("mine", pod_name="web", pod_id="p" * 64, host_network=True) == socket.gethostname()


# --- resolv.conf


def test_dns_settings_are_written_as_given() -> None:
    dns = DnsConfig(servers=["10.96.0.10", "fd00::a"], searches=["a.svc", "svc"], options=["ndots:5", "edns0"])
    assert resolv_conf(dns) == ("nameserver 10.96.0.10\nnameserver fd00::a\nsearch a.svc svc\noptions ndots:5 edns0\n")
    assert resolv_conf(DnsConfig(searches=["svc"])) == "search svc\n"


@pytest.mark.skipif(not HOST_RESOLV_CONF.exists(), reason="the host has no resolv.conf")
def test_without_settings_the_hosts_are_taken() -> None:
    assert resolv_conf(None) == resolv_conf(DnsConfig()) == HOST_RESOLV_CONF.read_text()


@pytest.mark.parametrize(
    "dns",
    [
        DnsConfig(servers=["not an address"]), DnsConfig(servers=["example.org"]), DnsConfig(servers=[""]),
        DnsConfig(searches=["a b"]), DnsConfig(searches=["a\nnameserver 6.6.6.6"]), DnsConfig(options=["\t"]),
    ],
)  # fmt: skip
def test_what_is_no_dns_setting_is_refused(dns: DnsConfig) -> None:
    with pytest.raises(InvalidArgument, match="cannot use DNS"):
        resolv_conf(dns)


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_nothing_but_the_words_asked_for_is_ever_written(searches: list[str], options: list[str]) -> None:
    dns = DnsConfig(servers=["10.0.0.1"], searches=searches, options=options)
    try:
        written = resolv_conf(dns)
    except InvalidArgument:
        return
    lines = [line.split() for line in written.splitlines()]
    assert lines == [
        ["nameserver", "10.0.0.1"],
        *([["search", *searches]] if searches else []),
        *([["options", *options]] if options else []),
    ]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[PodFiles]:
    made = PodFiles(tmp_path / "pod")
    made.directory.mkdir()
    yield made
    namespaces.remove(made)
    assert not made.directory.exists()


def _set_flags(path: Path, flags: int) -> None:
    """FS_IOC_SETFLAGS."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x40086602, struct.pack("l", flags))
    finally:
        os.close(fd)


@pytest.mark.root
def test_containers_can_fill_no_more_than_the_pods_own_files(files: PodFiles) -> None:
    etc.write(files, EtcPlan("web", host_network=False, resolv_conf=""))
    with pytest.raises(OSError, match="No space left"), files.etc("hostname").open("ab", buffering=0) as file:
        for _ in range(32):
            file.write(bytes(1024 * 1024))
    sizes = sum(path.stat().st_blocks * 512 for path in files.own_etc.iterdir())
    assert sizes <= 2 * 1024 * 1024


@pytest.mark.root
@pytest.mark.parametrize("flags", [0x10, 0x20])  # immutable, append only: chattr(1)
def test_files_a_container_has_made_immutable_do_not_keep_the_pod(files: PodFiles, flags: int) -> None:
    etc.write(files, EtcPlan("web", host_network=False, resolv_conf=""))
    for name in ("hosts", "hostname", "resolv.conf"):
        _set_flags(files.etc(name), flags)
        with pytest.raises(PermissionError):
            files.etc(name).unlink()
    namespaces.remove(files)
    assert not files.directory.exists()


@pytest.mark.root
def test_the_files_in_etc(files: PodFiles) -> None:
    plan = EtcPlan("web", host_network=False, resolv_conf="nameserver 10.0.0.1\n")
    etc.write(files, plan)
    etc.add_addresses(files, plan, ["10.1.2.3", "fd00::3"])
    assert files.etc("hostname").read_text() == "web\n"
    assert files.etc("resolv.conf").read_text() == "nameserver 10.0.0.1\n"
    assert files.etc("hosts").read_text().splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.1.2.3\tweb",
        "fd00::3\tweb",
    ]
    for name in ("hosts", "hostname", "resolv.conf"):
        assert files.etc(name).stat().st_mode & 0o777 == 0o644


@pytest.mark.root
def test_a_qualified_name_is_known_by_its_first_part_too(files: PodFiles) -> None:
    plan = EtcPlan("web.example.org", host_network=False, resolv_conf="")
    etc.write(files, plan)
    etc.add_addresses(files, plan, ["10.1.2.3"])
    assert files.etc("hosts").read_text().splitlines()[-1] == "10.1.2.3\tweb.example.org\tweb"


@pytest.mark.root
@pytest.mark.skipif(not Path("/etc/hosts").exists(), reason="the host has no hosts file")
def test_on_the_hosts_network_the_hosts_file_is_the_hosts(files: PodFiles) -> None:
    etc.write(files, EtcPlan("node", host_network=True, resolv_conf=""))
    assert files.etc("hosts").read_text() == Path("/etc/hosts").read_text()
