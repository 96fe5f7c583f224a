"""The configured handlers, and which of them work on this host, found out by trying."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from criw.config.supervisor import SupervisorSection
from criw.errors import FailedPrecondition
from criw.operations import together
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.ledger.places import Places
from criw_supervisor.runtimes.handler import Handler
from criw_supervisor.runtimes.oci import OciHandler

log = logging.getLogger(__name__)
_MONITORS: Final = "conmon"  # their cgroup, beside the pods'


class Handlers:
    """Handlers by name. `broken` says why one does not work; `default` is "" if none does.

    `vulnerable` says what is known of the runtimes of others, as they were when the supervisor started.
    """

    def __init__(
        self,
        configured: Mapping[str, Handler],
        broken: dict[str, str],
        default: str,
        *,
        gone: Callable[[str], Handler] | None = None,
        vulnerable: Mapping[str, str] | None = None,
    ) -> None:
        """`gone` makes a handler for the containers of one that is not configured any more."""
        self.configured = configured
        self.broken = broken
        self.default = default
        self.vulnerable = vulnerable or {}
        self._gone = gone
        self._were: dict[str, Handler] = {}

    @property
    def all(self) -> list[Handler]:
        """Those configured, and those that containers were made with."""
        return [*self.configured.values(), *self._were.values()]

    @property
    def working(self) -> list[str]:
        return [name for name in self.configured if name not in self.broken]

    def get(self, name: str) -> Handler:
        """The handler a request names ("": the default). Raises FailedPrecondition if it does not work here."""
        name = name or self.default
        if name in self.configured and name not in self.broken:
            return self.configured[name]
        broken = "; ".join(f"{one}: {why}" for one, why in self.broken.items())
        why = self.broken.get(name, "it is not configured in [supervisor.runtimes]" if name else broken)
        known = ", ".join(self.working) or "none"
        raise FailedPrecondition(f"cannot use runtime handler {name or '(default)'}: {why}; working handlers: {known}")

    def of_record(self, name: str) -> Handler:
        """The handler an existing container was made with, working or not.

        One that is not configured any more still tells ends, kills and removes. Raises FailedPrecondition where nobody
        can.
        """
        if name in self.configured:
            return self.configured[name]
        if name not in self._were:
            if self._gone is None:
                raise FailedPrecondition(f"cannot manage containers of runtime handler {name}: it is not configured")
            self._were[name] = self._gone(name)
        return self._were[name]

    def close(self) -> None:
        """Stop watching what they hold."""
        for handler in self.all:
            handler.close()


async def probe_handlers(section: SupervisorSection, places: Places, cgroups: Cgroups) -> Handlers:
    """Try every configured handler and say in the log what does not work, and why.

    Raises FailedPrecondition if conmon is missing.
    """
    monitor = shutil.which(os.fspath(section.conmon))
    if monitor is None:
        raise FailedPrecondition(f"cannot run containers: {section.conmon} is missing; install the package conmon")
    monitors = f"{section.cgroup_parent}/{_MONITORS}"
    make = partial(OciHandler, monitor=monitor, monitors=monitors, places=places, cgroups=cgroups)
    configured = {name: make(name, runtime) for name, runtime in section.runtimes.items()}
    broken: dict[str, str] = {}
    vulnerable: dict[str, str] = {}

    async def probe(handler: OciHandler) -> None:
        try:
            why = await handler.probe(section.cgroup_parent)
        except OSError as err:  # a full or read-only disk: containers that are there are still to be looked after
            why = str(err)
        if why:
            broken[handler.name] = why
            log.warning("runtime handler does not work here", extra={"handler": handler.name, "why": why})
        elif known := await handler.vulnerabilities():
            vulnerable[handler.name] = known
            log.warning("runtime has known vulnerabilities", extra={"handler": handler.name, "known": known})

    await together(*(probe(handler) for handler in configured.values()))
    default = section.default_runtime or next((name for name in configured if name not in broken), "")
    handlers = Handlers(configured, broken, default, gone=lambda name: make(name, None), vulnerable=vulnerable)
    log.info("runtime handlers", extra={"working": ",".join(handlers.working) or "none", "default": default or "none"})
    return handlers
