import json
import platform
from pathlib import Path

import pytest

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import SecurityProfile, SecurityProfileProfileType
from criw_supervisor.oci.capabilities import ALL, DEFAULT
from criw_supervisor.oci.seccomp import default, profile

KIND = SecurityProfileProfileType
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


def test_a_relative_profile_is_refused() -> None:
    local = SecurityProfile(profile_type=KIND.Localhost, localhost_ref="profiles/x.json")
    with pytest.raises(InvalidArgument, match=r"profiles/x\.json: it must be an absolute path"):
        profile(local, held=DEFAULT)
