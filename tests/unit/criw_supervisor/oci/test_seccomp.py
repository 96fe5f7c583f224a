import ctypes
import json
import os
import platform
from pathlib import Path

import pytest

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import SecurityProfile, SecurityProfileProfileType
from criw_supervisor.oci.capabilities import ALL, DEFAULT
from criw_supervisor.oci.seccomp import _ALLOWED, _BY_CAPABILITY, default, profile

KIND = SecurityProfileProfileType
AF_ALG = 38
UPSTREAM = Path(__file__).with_name("moby-seccomp.tsv")
# Calls only old programs of 32 bits make, and one that gives nothing its capability does not.
OURS_ONLY = {(call, "-") for call in ("readdir", "sigaction", "signal", "sigpending", "sigsuspend")} | {
    ("pivot_root", "SYS_ADMIN")
}
# The first need no capability on any kernel that has the filter, the last is there on its machine.
UPSTREAM_ONLY = {(call, "SYS_PTRACE") for call in ("process_vm_readv", "process_vm_writev", "ptrace")} | {
    ("riscv_hwprobe", "-")
}
RUNTIME = SecurityProfile(profile_type=KIND.RuntimeDefault)


def actions(filters: dict[str, object], call: str) -> list[str]:
    """What the rules say about a call, in order; those that look at arguments are marked."""
    rules = filters["syscalls"]
    assert isinstance(rules, list)
    return [rule["action"] + ("?" if "args" in rule else "") for rule in rules if call in rule["names"]]


def test_no_profile_and_unconfined_mean_no_filter() -> None:
    assert profile(None, held=DEFAULT) is None
    assert profile(SecurityProfile(profile_type=KIND.Unconfined), held=DEFAULT) is None


def test_the_default_allows_the_usual_and_refuses_the_rest() -> None:
    filters = profile(RUNTIME, held=DEFAULT)
    assert filters == default(DEFAULT)
    assert filters is not None
    assert filters["defaultAction"] == "SCMP_ACT_ERRNO"
    assert filters["defaultErrnoRet"] == 38  # calls newer than the list do not exist for the C library
    assert actions(filters, "openat") == ["SCMP_ACT_ALLOW"]
    assert actions(filters, "chroot") == ["SCMP_ACT_ALLOW"]  # SYS_CHROOT is in the default set
    for call in ("mount", "unshare", "setns", "bpf", "keyctl", "init_module", "reboot", "io_uring_setup", "kcmp"):
        assert actions(filters, call) == ["SCMP_ACT_ERRNO"], call


def test_threads_may_be_made_namespaces_not() -> None:
    filters = default(DEFAULT)
    assert actions(filters, "clone") == ["SCMP_ACT_ALLOW?"]
    assert actions(filters, "clone3") == ["SCMP_ACT_ERRNO"]
    administrator = default(DEFAULT | {"SYS_ADMIN"})
    assert actions(administrator, "clone") == actions(administrator, "clone3") == ["SCMP_ACT_ALLOW"]
    assert actions(administrator, "mount") == ["SCMP_ACT_ALLOW"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 is a kind of calls of x86-64 only")
def test_only_kinds_of_calls_that_the_kernel_has_are_compiled() -> None:
    served = ctypes.CDLL(None).syscall(0x40000000 + 39) == os.getpid()
    expected = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", *(["SCMP_ARCH_X32"] if served else [])]
    assert default(DEFAULT)["architectures"] == expected


def upstream() -> tuple[set[tuple[str, str]], set[int]]:
    """Calls with the capability each needs, and address families."""
    rows = [line.split("\t") for line in UPSTREAM.read_text().splitlines() if not line.startswith("#")]
    calls = {(call, capability) for call, capability in rows if call != "socket"}
    return calls, {int(family) for call, family in rows if call == "socket"}


def families(filters: dict[str, object]) -> list[int]:
    """Address families a socket may have: whole values, so that no bits above the kernel's 32 hide one."""
    rules = filters["syscalls"]
    assert isinstance(rules, list)
    found = []
    for rule in rules:
        if "socket" in rule["names"]:
            assert rule["action"] == "SCMP_ACT_ALLOW"
            ((argument),) = rule["args"]
            assert (argument["index"], argument["op"]) == (0, "SCMP_CMP_EQ")
            found.append(argument["value"])
    return found


def test_what_other_runtimes_have_come_to_refuse_is_noticed_here() -> None:
    calls, _ = upstream()
    ours = {(call, "-") for call in _ALLOWED}
    ours |= {(call, capability) for capability, those in _BY_CAPABILITY.items() for call in those}
    assert ours - calls == OURS_ONLY
    assert calls - ours == UPSTREAM_ONLY


@pytest.mark.parametrize("held", [frozenset(), DEFAULT, frozenset(ALL)])
def test_only_known_families_of_sockets_are_given_whatever_the_capabilities(held: frozenset[str]) -> None:
    given = families(default(held))
    assert set(given) == upstream()[1]
    assert AF_ALG not in given


@pytest.mark.parametrize("held", [frozenset(), DEFAULT, frozenset(ALL), frozenset({"SYS_ADMIN"})])
def test_no_call_has_two_unconditional_answers(held: frozenset[str]) -> None:
    filters = default(held)
    rules = filters["syscalls"]
    assert isinstance(rules, list)
    for call in {name for rule in rules for name in rule["names"]}:
        assert len([one for one in actions(filters, call) if not one.endswith("?")]) <= 1, call


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "s390x", "mips"])
def test_every_machine_has_a_profile(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    filters = default(DEFAULT)
    assert ("arch_prctl" in json.dumps(filters)) is (machine == "x86_64")
    clone = next(rule for rule in filters["syscalls"] if rule["names"] == ["clone"])  # type: ignore[attr-defined]
    assert clone["args"][0]["index"] == (1 if machine == "s390x" else 0)


def test_a_profile_of_the_node(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    local = SecurityProfile(profile_type=KIND.Localhost, localhost_ref=str(path))
    assert profile(local, held=DEFAULT) == {"defaultAction": "SCMP_ACT_LOG"}


@pytest.mark.parametrize("content", [None, "no json", "[]", '"text"', b"\xff\xfe"])
def test_a_profile_that_cannot_be_used_is_refused_by_name(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    local = SecurityProfile(profile_type=KIND.Localhost, localhost_ref=str(path))
    with pytest.raises(InvalidArgument, match=str(path)):
        profile(local, held=DEFAULT)


@pytest.mark.parametrize("kind", ["fifo", "device", "link to a device"])
def test_a_profile_that_has_no_end_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "profile.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind != "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(InvalidArgument, match="it is no plain file"):
        profile(SecurityProfile(profile_type=KIND.Localhost, localhost_ref=str(path)), held=DEFAULT)


def test_a_relative_profile_is_refused() -> None:
    local = SecurityProfile(profile_type=KIND.Localhost, localhost_ref="profiles/x.json")
    with pytest.raises(InvalidArgument, match=r"profiles/x\.json: it must be an absolute path"):
        profile(local, held=DEFAULT)
