"""The agent may die at any instruction, and stop at any time: pods go on, and nothing else is left."""

import asyncio
import contextlib
import ipaddress
import json
import random
import secrets
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from criw import kernel
from criw.errors import AlreadyExists, Fault
from criw.ids import new_id
from criw_proto.criw.network.v1 import PortMapping
from support import host
from support.crew import Crew, running_crew
from support.network import HOST, NetworkClient, ask_tcp, elements, left_by_pods, tcp_server

ROUNDS = 12


def gateway(crew: Crew) -> str:
    return str(ipaddress.ip_network(crew.config.network.pod_cidrs[0])[1])


def aliases(crew: Crew) -> set[str]:
    """The pods that the links on the bridge belong to."""
    listed = HOST.run("ip", "-j", "link", "show", "master", crew.config.network.bridge).stdout
    return {link["ifalias"] for link in json.loads(listed or "[]")}


def pins(crew: Crew) -> set[str]:
    return {pin.name for pin in (crew.config.run_dir("network") / "netns").iterdir()}


def records(crew: Crew) -> set[str]:
    with contextlib.closing(sqlite3.connect(crew.config.state_dir("network") / "network.db")) as database:
        return {row[0] for row in database.execute("SELECT id FROM record WHERE kind = 'attachment'")}


async def test_pods_work_while_the_agent_is_away() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod = await network.attach(ports=[PortMapping("tcp", 80, 28201)])
        for end in (crew.kill, crew.stop):
            await end("network")
            async with tcp_server(pod, 80):
                assert (await ask_tcp(HOST, "127.0.0.1", 28201))[0] == pod.name
                assert pod.pings(gateway(crew))
            await crew.start("network")
            assert await network.attached() == {pod.name}
            assert await network.attach(pod.name) == pod
            async with tcp_server(pod, 80):
                assert (await ask_tcp(HOST, "127.0.0.1", 28201))[0] == pod.name
        other = await network.attach()
        assert other.ips != pod.ips
        await network.detach(pod)
        await network.detach(other)


async def test_killed_at_any_moment_it_keeps_what_it_acknowledged_and_nothing_else() -> None:
    """Pods come and go, each with a host port; the agent is killed at random moments."""
    chance = random.Random(4711)
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        acknowledged: set[str] = set()  # attached, and no detach was asked for
        unknown: set[str] = set()  # asked for, without an answer
        await network.attached()

        async def life(number: int) -> None:
            while True:
                pod_id = new_id()
                unknown.add(pod_id)
                await network.attach(pod_id, ports=[PortMapping("tcp", 80, 28210 + number)])
                unknown.discard(pod_id)
                acknowledged.add(pod_id)
                if chance.random() < 0.2 and len(acknowledged) < 30:
                    return
                acknowledged.discard(pod_id)
                unknown.add(pod_id)
                await network.detach(pod_id)
                unknown.discard(pod_id)

        for round_number in range(ROUNDS):
            # Without a retry by the client: what has no answer when the agent dies never gets one.
            lives = [asyncio.create_task(life(round_number * 4 + i)) for i in range(4)]
            await asyncio.sleep(chance.uniform(0.005, 0.06))
            process = crew.processes["network"]
            process.kill()
            for task in lives:
                task.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
            assert not [e for e in (t.exception() for t in lives if not t.cancelled()) if isinstance(e, Fault)]
            await crew.kill("network")
            await crew.start("network")

            present = await network.attached()
            assert acknowledged <= present <= acknowledged | unknown
            assert records(crew) == pins(crew) == aliases(crew) == present
            assert len(elements(crew)) == len(present)
            for pod_id in present & unknown:
                await network.detach(pod_id)
            unknown.clear()
        for pod_id in acknowledged:
            pod = await network.attach(pod_id)
            assert pod.pings(gateway(crew))
        await network.detach_all()
        assert left_by_pods(crew) == []


async def test_what_has_no_record_is_removed_at_start() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        kept, lost = await network.attach(), await network.attach(ports=[PortMapping("tcp", 80, 28202)])
        await crew.kill("network")
        with contextlib.closing(sqlite3.connect(crew.config.state_dir("network") / "network.db")) as database:
            database.execute("DELETE FROM record WHERE kind = 'attachment' AND id = ?", (lost.name,))
            database.commit()
        (crew.config.run_dir("network") / "netns" / new_id()).touch()
        bridge = crew.config.network.bridge
        subprocess.run(["ip", "addr", "add", "198.18.7.1/24", "dev", bridge], check=True)
        await crew.start("network")
        assert await network.attached() == pins(crew) == aliases(crew) == {kept.name}
        assert elements(crew) == []
        assert "198.18.7.1" not in HOST.run("ip", "addr", "show", "dev", bridge).stdout
        assert kept.pings(gateway(crew))
        await network.detach(kept)


async def test_after_a_reboot_the_pods_are_told_to_be_lost() -> None:
    """Namespaces, links and rules end with the kernel; what is left is the database, and perhaps files for pins."""
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pods = [await network.attach(ports=[PortMapping("tcp", 80, 28203)]), await network.attach()]
        await crew.kill("network")
        for pod in pods:
            assert pod.netns is not None
            kernel.umount2(pod.netns, flags=kernel.MNT_DETACH)
        pods[0].netns.unlink()  # type: ignore[union-attr]
        for port in Path(f"/sys/class/net/{crew.config.network.bridge}/brif").iterdir():
            HOST.run("ip", "link", "del", port.name)
        HOST.run("ip", "link", "del", crew.config.network.bridge)
        HOST.run("nft", "delete", "table", "inet", f"criw_{crew.config.network.bridge}")
        await crew.start("network")
        assert await network.lost() == await network.attached() == {pod.name for pod in pods}
        pod = await network.attach(pods[0].name, ports=[PortMapping("tcp", 80, 28203)])
        assert pod.pings(gateway(crew))
        assert await network.lost() == {pods[1].name}
        await network.detach_all()
        assert await network.attached() == records(crew) == pins(crew) == set()


async def test_a_pod_whose_namespace_is_gone_is_told_and_keeps_its_address() -> None:
    """The supervisor may still say that it is ready: until it is detached, no other may have what it had."""
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        gone, stays = await network.attach(ports=[PortMapping("tcp", 80, 28204)]), await network.attach()
        await crew.stop("network")
        assert gone.netns is not None
        kernel.umount2(gone.netns, flags=kernel.MNT_DETACH)
        await crew.start("network")
        assert await network.attached() == records(crew) == {gone.name, stays.name}
        assert await network.lost() == {gone.name}
        other = await network.attach()
        assert other.ips != gone.ips
        with pytest.raises(AlreadyExists, match=gone.name):
            await network.attach(ports=[PortMapping("tcp", 80, 28204)])
        await network.detach(gone)
        assert await network.lost() == set()
        assert await network.attached() == records(crew) == pins(crew) == aliases(crew) == {stays.name, other.name}
        assert elements(crew) == []
        await network.detach(stays)
        await network.detach(other)


async def test_a_namespace_that_goes_while_the_agent_runs_is_told() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod = await network.attach()
        assert await network.lost() == set()
        assert pod.netns is not None
        kernel.umount2(pod.netns, flags=kernel.MNT_DETACH)
        assert await network.lost() == {pod.name}
        again = await network.attach(pod.name)
        assert again.pings(gateway(crew))
        assert await network.lost() == set()
        await network.detach(pod)


async def test_an_idle_agent_leaves_the_host_as_it_was() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        assert host.links(crew) == host.rules(crew) == [], "bridge and rules are made on first need"
        await network.detach(await network.attach())
        assert host.links(crew)
        assert host.rules(crew)
        await crew.stop("network")
        assert host.links(crew) == host.rules(crew) == []
        await crew.start("network")
        pod = await network.attach()
        await crew.kill("network")
        assert pod.netns is not None
        kernel.umount2(pod.netns, flags=kernel.MNT_DETACH)
        await crew.start("network")
        await network.detach(pod)
        await crew.stop("network")
        assert host.links(crew) == host.rules(crew) == [], "what a killed agent left, the next one takes away"


async def test_rules_and_bridge_that_somebody_removes_come_back() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod = await network.attach(ports=[PortMapping("tcp", 80, 28205)])
        table = ("inet", f"criw_{crew.config.network.bridge}")
        assert HOST.run("nft", "delete", "table", *table).returncode == 0
        other = await network.attach()
        async with tcp_server(pod, 80):
            assert (await ask_tcp(HOST, "127.0.0.1", 28205))[0] == pod.name
        assert HOST.run("ip", "link", "del", crew.config.network.bridge).returncode == 0
        third = await network.attach()
        async with tcp_server(pod, 80):
            assert (await ask_tcp(third, pod.ips[0], 80))[0] == pod.name
            assert (await ask_tcp(HOST, "127.0.0.1", 28205))[0] == pod.name
        assert HOST.run("nft", "delete", "table", *table).returncode == 0
        await network.detach(pod)
        for rest in (other, third):
            await network.detach(rest)
        assert left_by_pods(crew) == []


LOOPBACK = "/proc/sys/net/ipv4/conf/{}/route_localnet"


async def eventually(found: Callable[[], bool]) -> None:
    """Within seconds, though nobody asks the agent for anything."""
    async with asyncio.timeout(15):
        while not found():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "change",
    [
        ["nft", "delete", "table", "inet", "{table}"],
        ["nft", "flush", "table", "inet", "{table}"],
        ["nft", "flush", "chain", "inet", "{table}", "guard"],
    ],
    ids=" ".join,
)
async def test_rules_that_somebody_takes_away_come_back_by_themselves(change: list[str]) -> None:
    """As `systemctl restart nftables` does. Without the guard, the host's loopback would be open to pods."""
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod = await network.attach(ports=[PortMapping("tcp", 80, 28207)])
        name = crew.config.network.bridge
        before = rules_of(crew)
        assert "drop" in before
        assert "masquerade" in before
        assert HOST.run(*(word.format(table=f"criw_{name}") for word in change)).returncode == 0
        await eventually(lambda: rules_of(crew) == before)
        await eventually(lambda: Path(LOOPBACK.format(name)).read_text() == "1\n")
        async with tcp_server(pod, 80):
            assert (await ask_tcp(HOST, "127.0.0.1", 28207))[0] == pod.name
        assert (await network.status()).ready
        await network.detach(pod)


async def test_a_bridge_that_somebody_takes_away_or_changes_comes_back_by_itself() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod, other = await network.attach(), await network.attach()
        name = crew.config.network.bridge
        for change in (
            ["ip", "link", "del", name],
            ["ip", "link", "set", name, "down"],
            ["ip", "addr", "flush", "dev", name],
        ):
            assert HOST.run(*change).returncode == 0
            await eventually(lambda: pod.pings(gateway(crew)))
            assert pod.pings(other.ips[0])
        await network.detach_all()


async def test_rules_that_cannot_be_made_again_are_told_and_the_hosts_loopback_is_closed() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod = await network.attach(ports=[PortMapping("tcp", 80, 28208)])
        name = crew.config.network.bridge
        rival = f"rv{secrets.token_hex(3)}"
        assert HOST.run("ip", "link", "add", rival, "type", "bridge").returncode == 0
        try:
            # Another link has our range now: the bridge cannot be made with it, nor the rules.
            assert HOST.run("ip", "addr", "add", f"{gateway(crew)}/24", "dev", rival).returncode == 0
            assert HOST.run("nft", "delete", "table", "inet", f"criw_{name}").returncode == 0
            async with asyncio.timeout(15):
                while (status := await network.status()).ready:
                    await asyncio.sleep(0.01)
            assert status.reason == "NetworkRemoved"
            assert rival in status.message
            assert Path(LOOPBACK.format(name)).read_text() == "0\n"
        finally:
            HOST.run("ip", "link", "del", rival)
        await eventually(lambda: "masquerade" in rules_of(crew))
        async with asyncio.timeout(15):
            while not (await network.status()).ready:
                await asyncio.sleep(0.01)
        await network.detach(pod)


def rules_of(crew: Crew) -> str:
    return HOST.run("nft", "list", "table", "inet", f"criw_{crew.config.network.bridge}").stdout


async def test_a_request_under_way_is_finished_before_the_agent_stops() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        await network.attached()
        attaching = [asyncio.create_task(network.attach()) for _ in range(5)]
        while not pins(crew):
            await asyncio.sleep(0)
        process = crew.processes["network"]
        process.terminate()
        outcomes = await asyncio.gather(*attaching, return_exceptions=True)
        await process.wait()  # a second signal would meet it on its way out
        await crew.stop("network")
        assert records(crew) == pins(crew) == {pod.name for pod in outcomes if not isinstance(pod, BaseException)}
        await crew.start("network")
        await network.detach_all()


async def test_an_intent_is_undone_at_start() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod = await network.attach(ports=[PortMapping("tcp", 80, 28206)])
        await crew.kill("network")
        with contextlib.closing(sqlite3.connect(crew.config.state_dir("network") / "network.db")) as database:
            (text,) = database.execute("SELECT document FROM record WHERE id = ?", (pod.name,)).fetchone()
            changed = json.dumps(json.loads(text) | {"attached": None})
            database.execute("UPDATE record SET document = ? WHERE id = ?", (changed, pod.name))
            database.commit()
        await crew.start("network")
        assert await network.attached() == records(crew) == pins(crew) == set()
        assert left_by_pods(crew) == []
        assert not Path(f"/sys/class/net/{crew.config.network.bridge}").exists()
