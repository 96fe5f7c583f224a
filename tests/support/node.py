"""A node for tests that only need a CRI socket: a registry with images and a crew that pulls from it, in a process.

    python -m support.node

prints one line of JSON when all is ready (see `Node`), and ends when its standard input does; its exit code is 0 only
if the crew then left the host as it was.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from support import images
from support.crew import ROOT, python_environment, running_crew
from support.registry import running_registry


@dataclass(frozen=True)
class Node:
    """Where the CRI is served, references of images to pull, and where containers may log to."""

    socket: str
    busybox: str
    nginx: str
    tags: list[str]  # of one image
    logs: str
    config: str  # criw.toml, "" for another runtime


async def serve() -> None:
    async with running_registry() as registry:
        base = registry.address
        for name, pushed in (
            ("library/busybox:latest", images.busybox()),
            ("library/nginx:latest", images.nginx()),
            ("test/tags:1", images.small("tags")),
            ("test/tags:2", images.small("tags")),
        ):
            await registry.push(name, pushed)
        toml = f'[image.registries."{base}"]\nplain_http = true\n'
        async with running_crew(extra_toml=toml) as crew:
            logs = crew.directory / "logs"
            logs.mkdir()
            node = Node(
                socket=os.fspath(crew.config.socket("cri")),
                busybox=f"{base}/library/busybox:latest",
                nginx=f"{base}/library/nginx:latest",
                tags=[f"{base}/test/tags:1", f"{base}/test/tags:2"],
                logs=os.fspath(logs),
                config=os.fspath(crew.config_path),
            )
            print(json.dumps(asdict(node)), flush=True)
            await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def running_node() -> Iterator[Node]:
    """A node of one's own; or the runtime at CRI_ENDPOINT with the references CRI_BUSYBOX, CRI_NGINX and CRI_TAGS."""
    if endpoint := os.environ.get("CRI_ENDPOINT"):
        busybox, nginx, tags = (os.environ[key] for key in ("CRI_BUSYBOX", "CRI_NGINX", "CRI_TAGS"))
        logs = os.environ.get("CRI_LOGS", "/var/log/pods")
        yield Node(endpoint.removeprefix("unix://"), busybox, nginx, tags.split(","), logs, "")
        return
    with subprocess.Popen(
        [sys.executable, "-m", "support.node"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=python_environment(),
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        line = process.stdout.readline()
        assert line, "the node did not start; its complaint is above"
        yield Node(**json.loads(line))
        process.stdin.close()
        code = process.wait(120)
    assert code == 0, f"the crew did not leave the host as it was (exit code {code}); its complaint is above"


def container_log(node: Node, *parts: str) -> Path:
    """A log file below the node's log directory."""
    return Path(node.logs, *parts)


if __name__ == "__main__":
    asyncio.run(serve())
