"""The numbers every process exposes for its own calls; agents add theirs to the same registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from criw import __version__

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)


class Metrics:
    """One per process. `registry` is what /metrics shows."""

    def __init__(self, agent: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("criw_build", "Version of the process.", registry=self.registry).info(
            {"version": __version__, "agent": agent}
        )
        self.calls = Counter(
            "criw_rpc", "gRPC calls answered, by method and status code.", ["method", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "criw_rpc_duration_seconds",
            "Time from a gRPC call's arrival to its answer.",
            ["method"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.running = Gauge(
            "criw_rpc_in_flight", "gRPC calls that are being answered.", ["method"], registry=self.registry
        )
