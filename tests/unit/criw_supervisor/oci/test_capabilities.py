from pathlib import Path

import pytest

from criw.errors import InvalidArgument
from criw_supervisor.oci.capabilities import ALL, DEFAULT, Asked, bounding_set, effective, oci

EVERY = frozenset(ALL)


def given(*, add: tuple[str, ...] = (), drop: tuple[str, ...] = (), held: frozenset[str] = EVERY) -> frozenset[str]:
    return effective(Asked(add=add, drop=drop), privileged=False, held=held)


def test_nothing_said_means_the_default() -> None:
    assert given() == DEFAULT
    assert "SYS_ADMIN" not in DEFAULT


def test_single_names_are_added_and_dropped() -> None:
    assert given(add=("NET_ADMIN",), drop=("NET_RAW", "CHOWN")) == DEFAULT - {"NET_RAW", "CHOWN"} | {"NET_ADMIN"}


def test_all_and_single_names_that_win_over_it() -> None:
    assert given(add=("ALL",)) == EVERY
    assert given(drop=("ALL",)) == frozenset()
    assert given(add=("CHOWN",), drop=("ALL",)) == {"CHOWN"}
    assert given(add=("ALL",), drop=("NET_RAW",)) == EVERY - {"NET_RAW"}
    assert given(add=("ALL", "CHOWN"), drop=("ALL",)) == {"CHOWN"}


def test_names_may_have_a_prefix_and_any_case() -> None:
    assert given(add=("CAP_NET_ADMIN", "sys_time")) == DEFAULT | {"NET_ADMIN", "SYS_TIME"}
    assert given(drop=("all",)) == frozenset()


@pytest.mark.parametrize("name", ["NONSENSE", "", "CAP_", "CAP_CAP_CHOWN"])
def test_what_is_no_capability_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidArgument, match="no such capability"):
        given(add=(name,))
    with pytest.raises(InvalidArgument, match="no such capability"):
        given(drop=(name,))


def test_what_this_process_lacks_nobody_gets() -> None:
    held = EVERY - {"SYS_RESOURCE", "CHOWN"}
    assert given(held=held) == DEFAULT - {"CHOWN"}
    assert given(add=("ALL",), held=held) == held
    assert effective(Asked(drop=("ALL",)), privileged=True, held=held) == held


def test_the_object_of_the_runtime() -> None:
    made = oci(frozenset({"NET_RAW", "CHOWN"}), ())
    assert made == {key: ["CAP_CHOWN", "CAP_NET_RAW"] for key in ("bounding", "effective", "permitted")}
    raised = oci(frozenset({"NET_RAW", "CHOWN"}), ["NET_RAW"])
    assert (raised["ambient"], raised["inheritable"]) == (["CAP_NET_RAW"], ["CAP_NET_RAW"])


def test_what_is_not_held_cannot_be_raised() -> None:
    with pytest.raises(InvalidArgument, match="CAP_NET_ADMIN"):
        oci(DEFAULT, ["NET_ADMIN"])
    with pytest.raises(InvalidArgument, match="no such capability"):
        oci(DEFAULT, ["NONSENSE"])


def test_the_names_are_the_kernels_and_in_its_order() -> None:
    assert (ALL[0], ALL[12], ALL[21], ALL[40]) == ("CHOWN", "NET_ADMIN", "SYS_ADMIN", "CHECKPOINT_RESTORE")
    assert len(set(ALL)) == len(ALL) == 41


def test_the_bounding_set_is_read_from_a_process_status() -> None:
    assert bounding_set(Path("/proc/self/status").read_text()) <= EVERY
    assert bounding_set("Name:\tx\nCapBnd:\t0000000000001001\n") == {"CHOWN", "NET_ADMIN"}
