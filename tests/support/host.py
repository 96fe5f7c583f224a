"""What a crew has left on the host: a list of findings, empty when it is as it was before."""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Protocol

from criw.config.crew import Config
from criw.mountinfo import mounts_below


class Traced(Protocol):
    """What is asked about: a crew, or one that runs in another process."""

    directory: Path
    config: Config

    @property
    def cgroup_parent(self) -> str: ...


def processes(crew: Traced) -> list[str]:
    """Living processes that were started with a path of the crew (conmon, the runtime, agents); zombies are gone."""
    mark = os.fsencode(crew.directory)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if mark in command:
            found.append(f"process {entry.name}: {command.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    return found


def mounts(crew: Traced) -> list[str]:
    return [f"mount {point}" for point in mounts_below(crew.directory)]


def cgroups(crew: Traced) -> list[str]:
    """The crew's parent cgroup and those below it, in every hierarchy (v1) or the one (v2)."""
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    return [f"cgroup {below}" for root in roots for below, _, _ in os.walk(root / crew.cgroup_parent.lstrip("/"))]


def links(crew: Traced) -> list[str]:
    """The crew's bridge and what hangs on it."""
    bridge = crew.config.network.bridge
    own = [bridge] if Path("/sys/class/net", bridge).exists() else []
    return [f"link {name}" for name in (*own, *links_on(bridge))]


def links_on(bridge: str) -> list[str]:
    """The names of the links that hang on a bridge; others' come and go meanwhile."""
    found = []
    for link in Path("/sys/class/net").iterdir():
        with contextlib.suppress(FileNotFoundError):  # no master, or gone since
            if (link / "master").readlink().name == bridge:
                found.append(link.name)
    return found


def rules(crew: Traced) -> list[str]:
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return [f"nftables {line}" for line in tables.splitlines() if crew.config.network.bridge in line]


def files(crew: Traced) -> list[str]:
    """State that belongs to a pod, a container or an image. Locks, databases and empty directories may stay."""
    kept = (".lock", ".db", ".db-wal", ".db-shm", ".db-reserve", ".sock")
    found = []
    for root in (crew.config.root, crew.config.run):
        for directory, _, names in os.walk(root):  # not rglob: what the crew removes meanwhile is no error
            found += [f"file {directory}/{name}" for name in names if not name.endswith(kept)]
    return found


def contents(crew: Traced) -> list[str]:
    """Everything above; images are expected to have been removed by the test that pulled them."""
    return [*processes(crew), *mounts(crew), *cgroups(crew), *links(crew), *rules(crew), *files(crew)]
