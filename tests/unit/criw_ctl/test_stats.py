import pytest

from criw_ctl.stats import cpu_percent
from criw_proto.runtime.v1 import ContainerStats, CpuUsage, UInt64Value

SECOND = 10**9


def sample(at: int, used: int | None) -> ContainerStats:
    usage = None if used is None else UInt64Value(value=used)
    return ContainerStats(cpu=CpuUsage(timestamp=at, usage_core_nano_seconds=usage))


def test_cpu_is_measured_between_the_samples() -> None:
    assert cpu_percent(sample(0, 0), sample(2 * SECOND, SECOND)) == 50
    assert cpu_percent(sample(SECOND, SECOND), sample(2 * SECOND, 3 * SECOND)) == 200


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (sample(SECOND, 0), sample(SECOND, 5)),
        (sample(0, None), sample(SECOND, 5)),
        (ContainerStats(), sample(SECOND, 5)),
    ],
)
def test_cpu_is_not_known_without_two_samples(before: ContainerStats, after: ContainerStats) -> None:
    assert cpu_percent(before, after) is None
