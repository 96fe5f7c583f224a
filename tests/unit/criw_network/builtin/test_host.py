"""What all pods share, when it cannot be made again."""

import secrets
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from criw.errors import Failed
from criw_network.builtin import ruleset
from criw_network.builtin.addresses import Addresses, Network, parse_ranges
from criw_network.builtin.bridge import Bridge
from criw_network.builtin.disposal import Disposal
from criw_network.builtin.host import Host

pytestmark = pytest.mark.root


async def test_what_is_wrong_is_told_as_long_as_pods_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def refuse(_: Bridge, networks: Sequence[Network]) -> None:
        steps.append("ensure")
        raise Failed("cannot make the bridge: injected")

    def lead(_: Bridge, *, allowed: bool) -> None:
        steps.append("open" if allowed else "close")

    monkeypatch.setattr(Bridge, "ensure", refuse)
    monkeypatch.setattr(Bridge, "lead_loopback", lead)
    registry = CollectorRegistry()
    addresses = Addresses(parse_ranges(["10.246.1.0/24"]), [])
    host = Host(Bridge(f"cp{secrets.token_hex(3)}", owner="", mtu=1500), addresses, Disposal(), registry)
    await host.probe()
    addresses.take("a")
    await host._restore()
    assert steps == ["close", "ensure"], "no guard, no way from the loopback to pods; whoever removed it"
    assert (host.condition.ready, host.condition.reason) == (False, "NetworkRemoved")
    assert "injected" in host.condition.message
    addresses.give_back("a")
    await host._restore()
    assert host.condition.ready, "the next pod may have better luck"
    assert registry.get_sample_value("criw_network_restored_total") == 0
    await host.close()


def test_the_guard_is_in_the_table_that_route_localnet_waits_for() -> None:
    rules = ruleset.replace("br", [], [])
    assert 'iifname "br" ip daddr 127.0.0.0/8 drop' in rules
    assert 'iifname "br" ip saddr 127.0.0.0/8 drop' in rules
