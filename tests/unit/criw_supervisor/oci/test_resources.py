import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import HugepageLimit, LinuxContainerResources
from criw_supervisor.oci import resources
from criw_supervisor.oci.resources import OomScore, check, merged, oci, supported

MIB = 1024 * 1024


def limits(**changes: object) -> LinuxContainerResources:
    result = LinuxContainerResources()
    for name, value in changes.items():
        setattr(result, name, value)
    return result


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (limits(cpu_period=-1), "cpu_period must not be negative"),
        (limits(cpu_shares=-2), "cpu_shares must not be negative"),
        (limits(memory_limit_in_bytes=-1), "memory_limit_in_bytes must not be negative"),
        (limits(memory_limit_in_bytes=4096), "below 1 MiB"),
        (limits(oom_score_adj=1001), "oom_score_adj"),
        (limits(oom_score_adj=-1001), "oom_score_adj"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(wrong: LinuxContainerResources, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check(wrong)


def test_what_the_kubelet_sends_is_taken() -> None:
    check(limits(cpu_quota=-1, cpu_period=100_000, cpu_shares=2, memory_limit_in_bytes=64 * MIB, oom_score_adj=-998))
    check(limits())


def test_only_what_is_set_reaches_the_runtime() -> None:
    assert oci(limits()) == {}
    assert oci(limits(cpu_shares=512)) == {"cpu": {"shares": 512}}
    assert oci(limits(cpu_quota=-1, cpuset_cpus="0-1")) == {"cpu": {"quota": -1, "cpus": "0-1"}}
    everything = limits(
        cpu_period=100_000, cpu_quota=50_000, cpuset_mems="0", memory_limit_in_bytes=MIB,
        memory_swap_limit_in_bytes=2 * MIB, hugepage_limits=[HugepageLimit(page_size="2MB", limit=0)],
        unified={"memory.high": "1"}, oom_score_adj=5,
    )  # fmt: skip
    assert oci(everything) == {
        "cpu": {"quota": 50_000, "period": 100_000, "mems": "0"},
        "memory": {"limit": MIB, "swap": 2 * MIB},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"memory.high": "1"},
    }


def test_an_update_changes_what_it_names_and_leaves_the_rest() -> None:
    now = limits(cpu_shares=100, cpu_quota=50_000, memory_limit_in_bytes=64 * MIB, unified={"a": "1", "b": "2"})
    after = merged(now, limits(cpu_quota=-1, cpuset_cpus="1", unified={"b": "3"}))
    assert after == limits(
        cpu_shares=100, cpu_quota=-1, memory_limit_in_bytes=64 * MIB, cpuset_cpus="1", unified={"a": "1", "b": "3"}
    )
    assert now.unified == {"a": "1", "b": "2"}


numbers = st.integers(0, 2**40)
some_limits = st.builds(
    limits, cpu_period=numbers, cpu_quota=st.integers(-1, 2**40), cpu_shares=numbers, memory_limit_in_bytes=numbers,
    cpuset_cpus=st.sampled_from(["", "0", "0-1"]), unified=st.dictionaries(st.text(), st.text(), max_size=3),
)  # fmt: skip


@given(some_limits, some_limits)
def test_an_update_repeated_changes_nothing(now: LinuxContainerResources, change: LinuxContainerResources) -> None:
    once = merged(now, change)
    assert merged(once, change) == once
    assert merged(now, limits()) == now


def test_a_host_without_swap_accounting_gets_no_swap_limit() -> None:
    asked = limits(memory_limit_in_bytes=MIB, memory_swap_limit_in_bytes=MIB)
    assert supported(asked, cgroup_v2=False, swap=False) == limits(memory_limit_in_bytes=MIB)
    assert supported(asked, cgroup_v2=False, swap=True) == asked
    assert asked.memory_swap_limit_in_bytes == MIB  # the request is as it was


def test_keys_of_version_2_are_refused_on_version_1() -> None:
    asked = limits(unified={"memory.high": "1"})
    assert supported(asked, cgroup_v2=True, swap=True).unified == {"memory.high": "1"}
    with pytest.raises(InvalidArgument, match="unified needs a host with cgroup v2"):
        supported(asked, cgroup_v2=False, swap=True)


def test_huge_pages_of_sizes_the_host_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_huge_page_sizes", lambda *, cgroup_v2: {"2MB"})
    asked = limits(hugepage_limits=[HugepageLimit(page_size="2MB", limit=5), HugepageLimit(page_size="1GB")])
    found = supported(asked, cgroup_v2=True, swap=True).hugepage_limits
    assert [(one.page_size, one.limit) for one in found] == [("2MB", 5)]


def test_sizes_of_huge_pages_are_written_as_the_kernel_does() -> None:
    """As its hugetlb files have them (hugetlb.2MB.max, hugetlb.1GB.max): whole megabytes, or gigabytes from 1 on."""
    directories = Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")
    kernels = {int(one.name.removeprefix("hugepages-").removesuffix("kB")) for one in directories}
    if not kernels:
        pytest.skip("this kernel has no huge pages")
    written = [(int(size[:-2]), size[-2:]) for size in resources._huge_page_sizes(cgroup_v2=True)]
    assert {number * {"MB": 1024, "GB": 1024**2}[unit] for number, unit in written} == kernels
    assert all(number < 1024 for number, _ in written)


def test_an_oom_score_is_clamped_to_what_may_be_set_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    may, may_not = OomScore(may_lower=True), OomScore(may_lower=False)
    assert may.clamped(-1000) == -1000
    with caplog.at_level(logging.WARNING):
        assert [may_not.clamped(score) for score in (-1000, -999, ours, 1000)] == [ours, ours, ours, 1000]
    assert len([one for one in caplog.records if "CAP_SYS_RESOURCE" in one.message]) == (1 if ours > -1000 else 0)
