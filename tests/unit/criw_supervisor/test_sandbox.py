import os
import socket
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw import kernel
from criw.errors import InvalidArgument
from criw.mountinfo import mounts_below
from criw_proto.runtime.v1 import DnsConfig
from criw_supervisor import sandbox
from criw_supervisor.sandbox import SandboxFiles, check_hostname, is_hostname, resolv_conf, split_sysctls

HOST_RESOLV_CONF = Path("/etc/resolv.conf")


# --- sysctls


def test_sysctls_go_to_the_namespace_they_belong_to() -> None:
    asked = {
        "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "kernel.msgmax": "8192", "kernel.sem": "1 2 3 4",
        "fs.mqueue.msg_max": "50", "kernel.domainname": "example.org", "net/core/somaxconn": "100",
    }  # fmt: skip
    network, local = split_sysctls(asked, own_network=True, own_ipc=True)
    assert network == {"net.ipv4.ip_forward": "1", "net.core.somaxconn": "100"}
    assert set(local) == set(asked) - {"net.ipv4.ip_forward", "net/core/somaxconn"}


@pytest.mark.parametrize(
    ("name", "own_network", "own_ipc"),
    [
        ("net.ipv4.ip_forward", False, True),
        ("kernel.msgmax", True, False),
        ("fs.mqueue.msg_max", True, False),
        ("kernel.domainname", False, True),
        ("kernel.panic", True, True),
        ("vm.swappiness", True, True),
        ("net", True, True),
        ("", True, True),
    ],
)
def test_a_sysctl_that_would_change_the_host_is_refused_by_name(name: str, own_network: bool, own_ipc: bool) -> None:
    with pytest.raises(InvalidArgument, match="belongs to no namespace of the pod"):
        split_sysctls({name: "1"}, own_network=own_network, own_ipc=own_ipc)


# --- hostname


@pytest.mark.parametrize("name", ["a", "web-1", "web.example.org", "x" * 64, "1a"])
def test_hostnames(name: str) -> None:
    assert is_hostname(name)
    check_hostname(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a\nb", "ŵ", "x" * 65, "a_b", "a\n"])
def test_what_is_no_hostname_is_refused(name: str) -> None:
    assert not is_hostname(name)
    with pytest.raises(InvalidArgument, match="cannot use hostname"):
        check_hostname(name)


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


# --- files


@pytest.fixture
def files(tmp_path: Path) -> SandboxFiles:
    made = SandboxFiles(tmp_path / "pod")
    made.directory.mkdir()
    return made


def test_the_files_in_etc(files: SandboxFiles) -> None:
    sandbox.write_etc(files, hostname="web", ips=["10.1.2.3", "fd00::3"], host_network=False, dns=None)
    assert files.etc("hostname").read_text() == "web\n"
    assert files.etc("hosts").read_text().splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.1.2.3\tweb",
        "fd00::3\tweb",
    ]
    for name in ("hosts", "hostname", "resolv.conf"):
        assert files.etc(name).stat().st_mode & 0o777 == 0o644


def test_a_qualified_name_is_known_by_its_first_part_too(files: SandboxFiles) -> None:
    sandbox.write_etc(files, hostname="web.example.org", ips=["10.1.2.3"], host_network=False, dns=None)
    assert files.etc("hosts").read_text().splitlines()[-1] == "10.1.2.3\tweb.example.org\tweb"


@pytest.mark.skipif(not Path("/etc/hosts").exists(), reason="the host has no hosts file")
def test_on_the_hosts_network_the_hosts_file_is_the_hosts(files: SandboxFiles) -> None:
    sandbox.write_etc(files, hostname="node", ips=[], host_network=True, dns=None)
    assert files.etc("hosts").read_text() == Path("/etc/hosts").read_text()


# --- namespaces and shared memory


async def create(
    files: SandboxFiles, *, sysctls: dict[str, str] | None = None, own_uts: bool = True, own_ipc: bool = True
) -> None:
    files.directory.rmdir()
    work = partial(sandbox.create, files, hostname="in-pod", own_uts=own_uts, own_ipc=own_ipc, sysctls=sysctls or {})
    await kernel.in_fresh_thread(work)


def inside(files: SandboxFiles, kind: Path, path: str) -> str:
    """A sysctl as the pod's namespace has it."""
    with kind.open() as handle:
        kernel.setns(handle.fileno(), 0)
    return Path(path).read_text().strip()


@pytest.mark.root
async def test_a_pod_has_its_own_names_and_shared_memory_and_gives_them_back(files: SandboxFiles) -> None:
    await create(files, sysctls={"kernel.msgmax": "12345", "kernel.domainname": "example.org"})
    try:
        read = partial(inside, files, files.uts)
        assert await kernel.in_fresh_thread(partial(read, "/proc/sys/kernel/hostname")) == "in-pod"
        assert await kernel.in_fresh_thread(partial(read, "/proc/sys/kernel/domainname")) == "example.org"
        message = await kernel.in_fresh_thread(partial(inside, files, files.ipc, "/proc/sys/kernel/msgmax"))
        assert message == "12345"
        assert socket.gethostname() != "in-pod"
        assert os.statvfs(files.shm).f_bsize * os.statvfs(files.shm).f_blocks == 64 * 1024 * 1024
        assert files.shm.stat().st_mode & 0o7777 == 0o1777
        assert files.namespaces() == {"ipc": str(files.ipc), "uts": str(files.uts)}
        assert files.mounts()["/dev/shm"] == files.shm
    finally:
        for _ in range(2):
            sandbox.unpin(files)
        assert mounts_below(files.directory) == []
        assert files.directory.is_dir()
        for _ in range(2):
            sandbox.remove(files)
    assert not files.directory.exists()


@pytest.mark.root
async def test_a_pod_with_the_hosts_namespaces_makes_none(files: SandboxFiles) -> None:
    await create(files, own_uts=False, own_ipc=False)
    assert files.namespaces() == {}
    assert mounts_below(files.directory) == []
    assert files.mounts()["/dev/shm"] == Path("/dev/shm")
    sandbox.remove(files)


@pytest.mark.root
@pytest.mark.parametrize(("name", "value"), [("kernel.shm_no_such", "1"), ("kernel.msgmax", "nonsense")])
async def test_a_sysctl_the_kernel_refuses_is_told_and_what_was_made_is_removed(
    files: SandboxFiles, name: str, value: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"cannot set sysctl {name}"):
        await create(files, sysctls={name: value})
    sandbox.remove(files)
    assert mounts_below(files.directory) == []
    assert not files.directory.exists()
