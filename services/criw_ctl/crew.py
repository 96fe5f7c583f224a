"""The embedded crew: starts the agents, watches them, restarts what dies, stops them in order.

One plain process without an event loop or threads, because it forks (see `criw_ctl.forked`). It is the subreaper of
all that the agents abandon: conmon processes end as its children, so none stays a zombie.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw import kernel, lockfile
from criw.config.common import AGENTS, AgentName, Common
from criw.errors import FailedPrecondition
from criw.listener import bind
from criw.privileges import identity_of
from criw_ctl.events import Signals, ended_children, handle_signals, messages, notify_socket
from criw_ctl.forked import fork_agent, import_shared

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0
GOOD_LIFE_S: Final = 10.0
KILL_AFTER_DRAIN_S: Final = 5.0
ON_DEMAND: Final[tuple[AgentName, ...]] = ("streams",)


def pause_before_restart(quick_deaths: int) -> float:
    """Seconds to wait when an agent has died `quick_deaths` times in a row, each within `GOOD_LIFE_S` of its start."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (quick_deaths - 2)) if quick_deaths > 1 else 0.0


@dataclass
class Member:
    """One agent of the crew. `pid` is None while it is down; `due` is when it is to be started again.

    With a `listener` it is started when somebody connects there, and may end when nobody needs it any more.
    """

    agent: AgentName
    listener: socket.socket | None = None
    wanted: bool = True
    pid: int | None = None
    started: float = 0.0
    ready: bool = False
    quick_deaths: int = 0
    due: float = 0.0

    @property
    def name(self) -> str:
        return f"criw-{self.agent}"


class Crew:
    """Use `run_crew()`."""

    def __init__(
        self,
        settings: Common,
        argv: Sequence[str],
        *,
        signals: Signals,
        notify: socket.socket,
        listeners: Mapping[AgentName, socket.socket],
        let_go: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._argv = argv
        self._signals = signals
        self._notify = notify
        self._let_go = let_go
        self._poll = select.poll()
        self._poll.register(signals.wakeup, select.POLLIN)
        self._poll.register(notify, select.POLLIN)
        self._members: Final = [Member(agent, listeners.get(agent)) for agent in AGENTS]
        for member in self._members:
            self._wait_for_callers(member)
        self._complete = False  # every agent has been ready
        self._refused = False

    def run(self, on_ready: Callable[[], None]) -> int:
        """Run until SIGTERM, SIGINT or SIGHUP; returns the exit code. `on_ready` is called once all are ready."""
        while not (self._signals.stop or self._refused):
            for member in self._members:
                if member.pid is None and member.wanted and member.due <= time.monotonic():
                    self._start(member)
            pauses = [member.due for member in self._members if member.pid is None and member.wanted]
            self._handle_events(until=min(pauses, default=None))
            if not self._complete and all(member.ready or not member.wanted for member in self._members):
                self._complete = True
                on_ready()
        stopped_in_time = self._stop()
        if self._refused:
            return os.EX_CONFIG
        return 0 if stopped_in_time else 1

    def _wait_for_callers(self, member: Member) -> None:
        """Start it when somebody connects, if it has a socket for that."""
        if member.listener is not None:
            member.wanted = False
            self._poll.register(member.listener, select.POLLIN)

    def _start(self, member: Member) -> None:
        member.ready = False
        member.started = time.monotonic()
        try:
            member.pid = fork_agent(member.agent, self._argv, listener=member.listener, let_go=self._let_go)
        except OSError as err:  # no memory or no process left now; the others must not suffer for it
            self._start_later(member, f"cannot be started: {err.strerror}")
        else:
            log.info("%s started", member.name, extra={"pid": member.pid})

    def _start_later(self, member: Member, why: str) -> None:
        member.quick_deaths = 1 if time.monotonic() - member.started >= GOOD_LIFE_S else member.quick_deaths + 1
        pause = pause_before_restart(member.quick_deaths)
        member.due = time.monotonic() + pause
        log.warning("%s %s; starting it again in %.2f s", member.name, why, pause)

    def _handle_events(self, *, until: float | None) -> None:
        """Wait for a signal, a death or a message of an agent, at most until `until`, and act on all there are."""
        events = self._poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000)
        called = {fd for fd, _ in events}
        for member in self._members:
            if member.listener is not None and member.listener.fileno() in called:
                self._poll.unregister(member.listener)
                member.wanted = True
        self._signals.clear()
        self._take_notifications()
        for pid, status in ended_children():
            for member in self._members:
                if member.pid == pid:
                    self._ended(member, os.waitstatus_to_exitcode(status))

    def _take_notifications(self) -> None:
        for pid, state in messages(self._notify):
            for member in self._members:
                if member.pid == pid and "READY=1" in state.splitlines():
                    member.ready = True
                    log.info("%s is ready", member.name, extra={"after_s": round(time.monotonic() - member.started, 3)})

    def _ended(self, member: Member, code: int) -> None:
        how = f"was ended by a signal ({signal.strsignal(-code)})" if code < 0 else f"exited with code {code}"
        member.pid = None
        member.ready = False
        if self._signals.stop or self._refused:
            log.info("%s stopped", member.name, extra={"code": code})
            return
        if code == 0 and member.listener is not None:
            log.info("%s has ended, for nobody needs it now", member.name)
            self._wait_for_callers(member)
            return
        if code == os.EX_CONFIG and not self._complete:
            log.error("%s cannot work with this configuration; stopping the crew", member.name)
            self._refused = True
            return
        self._start_later(member, f"{how} after {time.monotonic() - member.started:.1f} s")

    def _stop(self) -> bool:
        """Stop the agents in reverse order of their start; False if one had to be killed."""
        in_time = True
        for member in reversed(self._members):
            if member.pid is not None:
                os.kill(member.pid, signal.SIGTERM)  # not reaped yet, so the pid is still its own
                self._await_end(member, self._settings.drain_timeout_s + KILL_AFTER_DRAIN_S)
            if member.pid is not None:
                log.error("%s does not stop; killing it", member.name)
                in_time = False
                os.kill(member.pid, signal.SIGKILL)
                self._await_end(member, None)
        return in_time

    def _await_end(self, member: Member, limit_s: float | None) -> None:
        until = None if limit_s is None else time.monotonic() + limit_s
        while member.pid is not None and (until is None or time.monotonic() < until):
            self._handle_events(until=until)


def _listener(stack: contextlib.ExitStack, settings: Common, agent: AgentName) -> socket.socket:
    """The agent's socket, which it is handed at its start: systemd calls it socket activation."""
    identity = identity_of(agent, settings)
    identity.make(settings.run_dir(agent), 0o750)
    identity.take(settings.run_dir(agent))
    with identity.assumed():
        listener = stack.enter_context(bind(settings.socket(agent)))
    listener.listen()
    return listener


def _hold_directories(stack: contextlib.ExitStack, settings: Common) -> None:
    """Raises FailedPrecondition if another `criwctl up` holds one of them."""
    for directory in (settings.run, settings.root):
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            stack.enter_context(lockfile.hold(directory / "up.lock", program="criwctl up"))
        except OSError as err:
            raise FailedPrecondition(
                f"cannot start the crew on {directory}: {err.strerror}; run it as root, or set root and run to other "
                "directories"
            ) from err


def conmons_of(settings: Common) -> int:
    """How many conmon processes, each the keeper of one container, run on the crew's directories."""
    marks = [os.fsencode(directory) + b"/" for directory in (settings.run, settings.root)]
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                command = (entry / "cmdline").read_bytes()
                is_conmon = (entry / "comm").read_text(errors="replace") == "conmon\n"
                count += is_conmon and any(mark in command for mark in marks)
    return count


def run_crew(settings: Common, config_path: Path | None, on_ready: Callable[[], None]) -> int:
    """Run the crew until a signal ends it; returns the exit code of `criwctl up`.

    Raises FailedPrecondition if it runs on these directories already.
    """
    argv = ["--config", os.fspath(config_path)] if config_path else []
    with contextlib.ExitStack() as ours:
        _hold_directories(ours, settings)
        signals = handle_signals(ours)
        notify = notify_socket(ours)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        listeners = {agent: _listener(ours, settings, agent) for agent in ON_DEMAND}
        import_shared()
        crew = Crew(settings, argv, signals=signals, notify=notify, listeners=listeners, let_go=ours.close)
        code = crew.run(on_ready)
        for agent in listeners:
            settings.socket(agent).unlink(missing_ok=True)
        settings.socket("cri").unlink(missing_ok=True)  # the door may not: it is in our directory
        left = conmons_of(settings)
        log.info(
            "the crew has stopped%s",
            f"; {left} containers go on without it until criwctl up takes them over" if left else "",
        )
    return code
