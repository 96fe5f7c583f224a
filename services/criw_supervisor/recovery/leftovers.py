"""Programs that outlived the supervisor that ran them: runtimes in the middle of something, commands in containers."""

import asyncio
import logging
import signal
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

from criw.operations import until_gone
from criw_supervisor import processes
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.runtimes.bundle import Bundle

log = logging.getLogger(__name__)
_LIMIT_S: Final = 10.0


async def await_runtimes(created: Collection[str], running: Collection[Bundle], *, known: Collection[str]) -> None:
    """Wait for runtimes that start `created` containers or run commands in `running` ones; kill those that take long.

    `known` are the ids of all containers: what is in one of their cgroups is no runtime, whatever it calls itself.
    Only then it is sure what was started.
    """
    executing = [bundle for bundle in running if bundle.all_exec_files()]
    if not created and not executing:
        return
    look = partial(_runtimes, frozenset(created), executing, frozenset(known))
    if left := await until_gone(_LIMIT_S, look):
        log.warning("killing runtimes that do not finish a start or an exec", extra={"pids": sorted(left)})
        for pid in left:
            processes.send_signal(pid, processes.start_time(pid), signal.SIGKILL)
        await until_gone(_LIMIT_S, look)


def _runtimes(created: frozenset[str], executing: Collection[Bundle], known: frozenset[str]) -> list[int]:
    return [
        pid
        for pid in processes.pids()
        if _works_for(processes.command_line(pid), created, executing) and known.isdisjoint(_cgroup_names(pid))
    ]


def _works_for(words: list[str], created: frozenset[str], executing: Collection[Bundle]) -> bool:
    starts = len(words) > 2 and words[-2] == "start" and words[-1] in created
    return starts or any(bundle.is_exec_file(word) for bundle in executing for word in words)


def _cgroup_names(pid: int) -> set[str]:
    """The names of the cgroups a process is in, and of those above them."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {name for line in text.splitlines() for name in line.split("/")[1:]}


async def end_commands(bundle: Bundle, cgroup: str, cgroups: Cgroups) -> None:
    """End the commands that were left in a running container, whose callers are gone."""
    members = partial(cgroups.processes, cgroup)
    for path in await asyncio.to_thread(bundle.all_exec_files):
        if path.suffix == ".pid" and (text := path.read_text()).isdecimal():
            pid = int(text)
            if pid in await cgroups.ask(members):  # and not another's by now
                await processes.kill_family(pid, members)
        path.unlink(missing_ok=True)
