"""The table of who may call whom is whole, and read by the users that the configuration gives the agents."""

import os
import re
from pathlib import Path

import pytest

from criw.callers import SERVED_TO, callers_of, user_of
from criw.config.common import AGENTS
from criw.config.crew import Config
from criw.config.cri import CriFacts, CriSection
from criw.config.image import ImageSection
from criw.errors import FailedPrecondition
from criw.rpc.peers import Peer

PROTOCOLS = Path(__file__).parents[3] / "proto"
ROOT = Peer(0, frozenset({0}))


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def services() -> set[str]:
    """Every gRPC service there is, but for the health that all processes serve."""
    found = set()
    for path in PROTOCOLS.rglob("*.proto"):
        text = path.read_text()
        package = re.findall(r"^package (\S+);", text, re.MULTILINE)[0]
        found |= {f"{package}.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    return found - {"grpc.health.v1.Health"}


def test_the_table_names_every_service_once() -> None:
    named = [service for served in SERVED_TO.values() for service in served]
    assert sorted(named) == sorted(services())
    assert len(named) == 9


def test_every_agent_but_the_door_is_in_the_table() -> None:
    assert SERVED_TO.keys() == set(AGENTS) - {"cri"}


@pytest.mark.usefixtures("as_root")
def test_each_service_answers_the_agents_the_design_names_and_no_other() -> None:
    config = Config()
    users = {agent: config.facts(agent).user for agent in AGENTS}
    answered = {
        service: {agent for agent in ("cri", "image", "storage") if callers.may_call(peer(users[agent]), service)}
        for server in SERVED_TO
        for callers in [callers_of(server, config)]
        for service in SERVED_TO[server]
    }
    assert answered == {
        "runtime.v1.RuntimeService": {"cri"},
        "runtime.v1.ImageService": {"cri"},
        "criw.image.v1.Images": {"cri"},
        "criw.storage.v1.Layers": {"image"},
        "criw.storage.v1.Disk": {"image"},
        "criw.storage.v1.Rootfs": set(),
        "criw.network.v1.Network": set(),
        "criw.network.v1.NetworkStatus": {"cri"},
        "criw.streams.v1.Streams": set(),
    }


def peer(uid: int) -> Peer:
    return Peer(uid, frozenset({Config().crew_gid}))


@pytest.mark.usefixtures("as_root")
def test_root_may_call_all_and_the_crew_may_connect() -> None:
    for server in SERVED_TO:
        callers = callers_of(server, Config())
        assert all(callers.may_call(ROOT, service) for service in SERVED_TO[server])
        assert callers.may_connect(peer(4711))
        assert not callers.may_connect(Peer(4711, frozenset({4711})))


@pytest.mark.usefixtures("as_root")
def test_a_configured_user_is_the_one_answered() -> None:
    callers = callers_of("network", Config(cri=CriSection(user=4711)))
    assert callers.may_call(peer(4711), "criw.network.v1.NetworkStatus")
    assert not callers.may_call(peer(CriFacts().user), "criw.network.v1.NetworkStatus")


@pytest.mark.usefixtures("as_root")
def test_what_is_not_in_the_table_is_for_root_alone() -> None:
    callers = callers_of("storage", Config())
    assert callers.may_call(ROOT, "criw.storage.v1.New")
    assert not callers.may_call(peer(Config().image.user), "criw.storage.v1.New")


@pytest.mark.usefixtures("as_root")
def test_the_door_is_for_its_group() -> None:
    assert not callers_of("cri", Config()).may_connect(peer(4711))
    open_to = callers_of("cri", Config(group="daemon"))
    member = Peer(4711, frozenset({4711, 1}))
    assert open_to.may_connect(member)
    assert open_to.may_call(member, "runtime.v1.RuntimeService")
    with pytest.raises(FailedPrecondition, match=r"^cannot give the socket to group no-such"):
        callers_of("cri", Config(group="no-such"))


def test_an_agent_under_its_own_user_answers_as_under_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd starts it so."""
    config = Config(image=ImageSection(user=4711))
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    callers = callers_of("image", config)
    assert callers.may_call(peer(config.cri.user), "criw.image.v1.Images")
    assert not callers.may_call(peer(4711), "criw.image.v1.Images")


def test_a_crew_of_one_user_answers_itself_and_root_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    callers = callers_of("storage", Config())
    mine = Peer(1000, frozenset({1000}))
    assert callers.may_connect(mine)
    assert callers.may_call(mine, "criw.storage.v1.Rootfs")
    assert not callers.may_connect(peer(Config().image.user))
    assert user_of("image", Config(), seen_from="storage") == 1000
