"""Ending the commands whose caller went away with the supervisor that ran them."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from criw.operations import until_gone
from criw_supervisor import processes
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.runtimes.bundle import Bundle

log = logging.getLogger(__name__)
_LIMIT_S: Final = 10.0


def end_leftovers(running: Sequence[tuple[Bundle, str]], cgroups: Cgroups) -> None:
    """End what was left in running containers, each given by its bundle and cgroup. Blocking."""
    for bundle, cgroup in running:
        if not bundle.all_exec_files():
            continue
        if until_gone(_LIMIT_S, partial(_working_on, bundle)):  # the runtime writes the pid file last
            log.warning("a runtime does not finish an exec", extra={"container": bundle.directory.name})
        for path in bundle.all_exec_files():
            if path.suffix == ".pid":
                pid = int(path.read_text() or 0)
                if pid in cgroups.processes(cgroup):  # and not another's by now
                    processes.kill_family(pid)
        for path in bundle.all_exec_files():
            path.unlink()


def _working_on(bundle: Bundle) -> list[int]:
    return [pid for pid in processes.pids() if any(bundle.is_exec_file(word) for word in processes.command_line(pid))]
