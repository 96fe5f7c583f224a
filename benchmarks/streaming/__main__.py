"""Measure exec sessions and forwarded ports over SPDY against any CRI socket: first byte, throughput, many at once.

    python -m benchmarks.streaming --endpoint /run/criw/criw.sock --image REFERENCE [--mib 512] [--sessions 100]

`first byte` is from the Exec call to the first byte of `echo`'s output, in milliseconds (p50 and p95 of 30). Throughput
is of one stream, in MB/s. The image must have a shell, cat, head and nc; it is pulled if it is missing. The client is a
process like the server's: on few cores each slows the other.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from criw.rpc.client import Channel
from criw_proto.runtime import v1 as cri
from support.client import Client
from support.streaming import FORWARD, STDERR, STDIN, STDOUT, exec_url, over_spdy, read_all, upgrade

_MIB = 1024 * 1024
_PORT = 8080
_RUNS = 30
_LISTENS = f"cat /proc/net/tcp /proc/net/tcp6 | grep -q ':{_PORT:04X} '"


async def first_byte(client: Client, container: str) -> list[float]:
    took = []
    for _ in range(_RUNS + 1):
        started = time.perf_counter()
        async with over_spdy(await exec_url(client, container, "echo", "x")) as remote:
            await remote.read(STDOUT)
            took.append((time.perf_counter() - started) * 1000)
            await read_all(remote, STDOUT)
    return sorted(took[1:])


async def out(client: Client, container: str, mib: int) -> float:
    where = await exec_url(client, container, "head", "-c", str(mib * _MIB), "/dev/zero")
    async with over_spdy(where) as remote:
        started, size = time.perf_counter(), 0
        while piece := await remote.read(STDOUT):
            size += len(piece)
    return size / 1e6 / (time.perf_counter() - started)


async def into(client: Client, container: str, mib: int) -> float:
    where = await exec_url(client, container, "sh", "-c", "cat > /dev/null", stdin=True)
    piece = bytes(_MIB)
    async with over_spdy(where, (STDIN, STDOUT, STDERR)) as remote:
        started = time.perf_counter()
        for _ in range(mib):
            await remote.send(piece)
        await remote.end_input()
        await read_all(remote, STDOUT)
    return mib * _MIB / 1e6 / (time.perf_counter() - started)


async def forwarded(client: Client, pod: str, mib: int) -> float:
    url = (await client.runtime.port_forward(cri.PortForwardRequest(pod_sandbox_id=pod, port=[_PORT]))).url
    spdy, _ = await upgrade(url, [FORWARD])
    headers = {"port": str(_PORT), "requestid": "1"}
    await spdy.connection.open({"streamtype": "error", **headers})
    stream = await spdy.connection.open({"streamtype": "data", **headers})
    started, size = time.perf_counter(), 0
    while piece := await stream.read():
        size += len(piece)
    took = time.perf_counter() - started
    spdy.connection.close()
    return size / 1e6 / took


def agent_pss(pid: int) -> float:
    """MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


async def idle(client: Client, container: str, sessions: int, agent: int) -> float:
    """MiB the agent has grown by."""
    before = agent_pss(agent)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(sessions):
            url = await exec_url(client, container, "cat", stdin=True)
            remote = await stack.enter_async_context(over_spdy(url, (STDIN, STDOUT, STDERR)))
            await remote.send(b"x")
            await remote.read(STDOUT)
        return agent_pss(agent) - before


async def image_id(client: Client, reference: str) -> str:
    reply = await client.images.image_status(cri.ImageStatusRequest(image=cri.ImageSpec(image=reference)))
    return reply.image.id if reply.image is not None else await client.pull(reference)


async def measure(options: argparse.Namespace) -> None:
    with contextlib.closing(Channel(options.endpoint)) as channel, tempfile.TemporaryDirectory() as logs:
        client = Client(channel, Path(logs), name=f"bench-{time.time_ns()}")
        image = await image_id(client, options.image)
        pod = await client.run_pod()
        try:
            container = await client.run(pod, image, ("sleep", "3600"))
            took = await first_byte(client, container)
            print(f"first byte       p50 {statistics.median(took):6.1f}  p95 {took[int(len(took) * 0.95)]:6.1f}  ms")
            for name, work in (("exec stdout", out), ("exec stdin", into)):
                print(f"{name:16} {max([await work(client, container, options.mib) for _ in range(3)]):8.0f}  MB/s")
            serving = f"head -c {options.mib * _MIB} /dev/zero | nc -l -p {_PORT} >/dev/null"
            await client.run(pod, image, ("sh", "-c", serving), name="server")
            await client.output(container, "sh", "-c", f"until {_LISTENS}; do sleep 0.01; done")
            print(f"port-forward     {await forwarded(client, pod, options.mib):8.0f}  MB/s")
            if options.agent:
                grown = await idle(client, container, options.sessions, options.agent)
                print(f"{options.sessions} idle sessions {grown:8.1f}  MiB")
        finally:
            await client.remove_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", type=Path, required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--mib", type=int, default=512, help="how much is sent for a throughput")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--agent", type=int, default=0, help="pid of the streaming server, to measure its memory")
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
