"""Who may use a cgroup whose strays are killed: one supervisor, and no other while it or its pods are there."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.errors import FailedPrecondition
from criw.ids import new_id
from criw_supervisor.cgroups.claim import claimed
from criw_supervisor.cgroups.hierarchies import Cgroups, of_host

pytestmark = pytest.mark.root
OURS, THEIRS = Path("/var/lib/ours/supervisor"), Path("/var/lib/theirs/supervisor")


@pytest.fixture
def host() -> Cgroups:
    found = of_host()
    if not found.directories("/"):
        pytest.skip("no cgroups are mounted here")
    return found


@pytest_asyncio.fixture
async def parent(host: Cgroups) -> AsyncIterator[str]:
    name = f"/criw-unit-{secrets.token_hex(3)}"
    yield name
    await host.remove(name)


def test_a_cgroup_is_one_running_supervisors_alone(host: Cgroups, parent: str) -> None:
    with claimed(host, parent, owner=OURS):
        refusal = rf"{parent}: another supervisor, which runs.* set cgroup_parent in"
        with pytest.raises(FailedPrecondition, match=refusal), claimed(host, parent, owner=THEIRS):
            pass
        assert all(directory.is_dir() for directory in host.directories(parent))
    with claimed(host, parent, owner=THEIRS):
        pass
    assert not any(directory.exists() for directory in host.directories(parent))


async def test_a_stopped_supervisors_pods_are_not_another_ones_to_kill(host: Cgroups, parent: str) -> None:
    pod = f"{parent}/{new_id()}"
    with claimed(host, parent, owner=OURS):
        host.create(pod)
    refusal = rf"it has pods of the supervisor with the state directory {OURS}"
    with pytest.raises(FailedPrecondition, match=refusal), claimed(host, parent, owner=THEIRS):
        pass
    with claimed(host, parent, owner=OURS):
        await host.remove(pod)


async def test_the_mark_of_one_that_has_left_nothing_keeps_nobody_away(host: Cgroups, parent: str) -> None:
    with claimed(host, parent, owner=OURS):
        host.create(f"{parent}/of-somebody-else")
    with claimed(host, parent, owner=THEIRS):
        await host.remove(f"{parent}/of-somebody-else")
