"""Readings of made-up cgroup directories."""

from pathlib import Path

import pytest

from criw_supervisor.cgroups.hierarchies import Cgroups, parse
from criw_supervisor.cgroups.usage import read_usage


def hierarchy(tmp_path: Path, mounts: dict[str, str]) -> Cgroups:
    lines = [
        f"{number} 1 0:1 / {tmp_path / name} rw - {kind.partition(' ')[0]} none rw,{kind.partition(' ')[2]}\n"
        for number, (name, kind) in enumerate(mounts.items())
    ]
    return parse("".join(lines).encode(), tmp_path)


def write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


MEMORY_V1 = {
    "memory.usage_in_bytes": "1000000\n",
    "memory.limit_in_bytes": "4000000\n",
    "memory.memsw.usage_in_bytes": "1200000\n",
    "memory.stat": "cache 5\ntotal_rss 300000\ntotal_inactive_file 100000\ntotal_pgfault 12\ntotal_pgmajfault 3\n",
    "cgroup.procs": "1\n2\n",
}


@pytest.fixture
def v1(tmp_path: Path) -> Cgroups:
    write(tmp_path / "memory" / "criw/c", MEMORY_V1)
    write(tmp_path / "memory" / "criw/c/below", {"cgroup.procs": "3\n"})
    write(tmp_path / "cpu" / "criw/c", {"cpuacct.usage": "5000000000\n", "cgroup.procs": "1\n2\n"})
    return hierarchy(tmp_path, {"memory": "cgroup memory", "cpu": "cgroup cpu,cpuacct"})


def test_a_reading_of_version_1(v1: Cgroups) -> None:
    usage = read_usage(v1, "/criw/c")
    assert usage is not None
    assert usage.at_ns > 0
    assert (usage.cpu_ns, usage.memory, usage.working_set, usage.rss) == (5_000_000_000, 1_000_000, 900_000, 300_000)
    assert (usage.page_faults, usage.major_page_faults) == (12, 3)
    assert (usage.memory_limit, usage.swap, usage.processes) == (4_000_000, 200_000, 3)


def test_no_limit_and_no_swap_accounting_of_version_1(v1: Cgroups, tmp_path: Path) -> None:
    directory = tmp_path / "memory/criw/c"
    write(directory, {"memory.limit_in_bytes": "9223372036854771712\n"})
    (directory / "memory.memsw.usage_in_bytes").unlink()
    usage = read_usage(v1, "/criw/c")
    assert usage is not None
    assert (usage.memory_limit, usage.swap) == (None, None)


def test_the_working_set_is_never_negative(v1: Cgroups, tmp_path: Path) -> None:
    write(tmp_path / "memory/criw/c", {"memory.stat": "total_inactive_file 99999999\n"})
    usage = read_usage(v1, "/criw/c")
    assert usage is not None
    assert usage.working_set == 0


def test_a_cgroup_that_is_gone_has_no_reading(v1: Cgroups, tmp_path: Path) -> None:
    assert read_usage(v1, "/criw/gone") is None
    (tmp_path / "cpu/criw/c/cpuacct.usage").unlink()
    assert read_usage(v1, "/criw/c") is None


def test_a_host_that_does_not_count_has_no_reading(tmp_path: Path) -> None:
    host = hierarchy(tmp_path, {"pids": "cgroup pids"})
    assert read_usage(host, "/criw/c") is None


def test_a_reading_of_version_2(tmp_path: Path) -> None:
    host = hierarchy(tmp_path, {"": "cgroup2 "})
    assert host.v2
    files = {
        "memory.current": "1000000\n",
        "memory.max": "max\n",
        "memory.stat": "anon 300000\ninactive_file 100000\npgfault 12\npgmajfault 3\n",
        "memory.swap.current": "4096\n",
        "cpu.stat": "usage_usec 5000000\nuser_usec 1\n",
        "cgroup.procs": "1\n",
    }
    write(tmp_path / "criw/c", files)
    usage = read_usage(host, "/criw/c")
    assert usage is not None
    assert (usage.cpu_ns, usage.memory, usage.working_set, usage.rss) == (5_000_000_000, 1_000_000, 900_000, 300_000)
    assert (usage.memory_limit, usage.swap, usage.processes) == (None, 4096, 1)
    write(tmp_path / "criw/c", {"memory.max": "2000000\n"})
    limited = read_usage(host, "/criw/c")
    assert limited is not None
    assert limited.memory_limit == 2_000_000
