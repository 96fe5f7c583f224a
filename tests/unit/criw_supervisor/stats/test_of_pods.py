"""What becomes of readings of cgroups and interfaces in the CRI's messages."""

from criw_proto.criw.network.v1 import InterfaceStats, PodStats
from criw_supervisor.cgroups.usage import CgroupUsage
from criw_supervisor.stats.of_containers import _swap, cpu, memory
from criw_supervisor.stats.of_pods import _network_usage, _process

READING = CgroupUsage(
    at_ns=99, cpu_ns=5, memory=1000, working_set=900, rss=300, page_faults=12, major_page_faults=3, memory_limit=2000,
    swap=-7, processes=3,
)  # fmt: skip


def test_what_the_cri_tells_of_a_reading() -> None:
    processor, ram, swap, process = cpu(READING), memory(READING), _swap(READING), _process(READING)
    assert processor is not None
    assert ram is not None
    assert swap is not None
    assert process is not None
    assert {one.timestamp for one in (processor, ram, swap, process)} == {99}
    assert processor.usage_core_nano_seconds is not None
    assert processor.usage_core_nano_seconds.value == 5
    assert ram.available_bytes is not None
    assert ram.available_bytes.value == 1100
    assert swap.swap_usage_bytes is not None
    assert swap.swap_usage_bytes.value == 0  # two files are not read in the same moment
    assert process.process_count is not None
    assert process.process_count.value == 3


def test_without_a_reading_nothing_is_told() -> None:
    assert (cpu(None), memory(None), _swap(None), _process(None), _network_usage(None)) == (None,) * 5
    assert _network_usage(PodStats(pod_id="p")) is None


def test_the_first_interface_is_the_default() -> None:
    interfaces = [
        InterfaceStats(name="eth0", rx_bytes=1, tx_bytes=2, rx_errors=3, tx_errors=4),
        InterfaceStats(name="lo"),
    ]
    usage = _network_usage(PodStats(pod_id="p", timestamp_ns=7, interfaces=interfaces))
    assert usage is not None
    assert usage.timestamp == 7
    assert usage.default_interface is not None
    assert usage.default_interface.name == "eth0"
    assert [one.name for one in usage.interfaces] == ["eth0", "lo"]
    assert usage.default_interface.tx_bytes is not None
    assert usage.default_interface.tx_bytes.value == 2
