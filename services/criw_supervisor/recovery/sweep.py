"""Removing what has our marks and no record: directories with their mounts, cgroups, what a probe left."""

import asyncio
import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from criw.ids import is_id
from criw.retrying import Step
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.places import PodFiles
from criw_supervisor.pods import namespaces
from criw_supervisor.recovery.unfinished import Unfinished
from criw_supervisor.runtimes.oci import PROBE

log = logging.getLogger(__name__)


async def sweep(ledger: Ledger, cgroups: Cgroups, *, cgroup_parent: str, unfinished: Unfinished) -> None:
    """Remove all of it; what cannot be is left to `unfinished`."""
    found = await asyncio.to_thread(lambda: list(_strays(ledger, cgroups, cgroup_parent)))
    await asyncio.gather(*(unfinished.attempt(what, remove) for what, remove in found))


def _strays(ledger: Ledger, cgroups: Cgroups, cgroup_parent: str) -> Iterator[tuple[str, Step]]:
    places = ledger.places
    for path in places.pods.iterdir():
        if not ledger.knows(path.name):
            yield f"remove the stray directory of a pod {path}", partial(asyncio.to_thread, _remove_pod, path)
    for path in places.bundles.iterdir():
        if not ledger.knows(path.name):
            yield f"remove the stray bundle {path}", partial(asyncio.to_thread, _remove_tree, path)
    for path in (places.run / "runtime").rglob(f"{PROBE}*"):
        yield f"remove what a probe left {path}", partial(asyncio.to_thread, _remove_tree, path)
    for name in cgroups.children(cgroup_parent):
        # Names only we give: an administrator may have chosen a parent that others use, too.
        if (is_id(name) or name.startswith(PROBE)) and not ledger.knows(name):
            cgroup = f"{cgroup_parent}/{name}"
            yield f"remove the stray cgroup {cgroup}", partial(_remove_cgroup, cgroups, cgroup)


def _remove_pod(path: Path) -> None:
    if path.is_dir():
        namespaces.remove(PodFiles(path))
    _remove_tree(path)


def _remove_tree(path: Path) -> None:
    log.info("removing what has no record", extra={"path": str(path)})
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


async def _remove_cgroup(cgroups: Cgroups, cgroup: str) -> None:
    log.info("removing a cgroup without a pod", extra={"cgroup": cgroup})
    await cgroups.kill(cgroup)
    await cgroups.remove(cgroup)
