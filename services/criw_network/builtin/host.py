"""What all pods share on the host: the bridge and the table of rules.

Both are made on first need, and made again when somebody removes or empties them: restarting Debian's nftables.service
flushes the rules of all.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from criw.errors import Failed, FailedPrecondition, Fault
from criw.kernel import in_fresh_thread
from criw_network.builtin import nftables, ruleset
from criw_network.builtin.addresses import Addresses
from criw_network.builtin.bridge import Bridge
from criw_network.builtin.disposal import Disposal
from criw_network.builtin.nftables import Nftables
from criw_network.builtin.ruleset import Element
from criw_network.netlink.socket import RECEIVE_BYTES
from criw_network.provider import Condition

log = logging.getLogger(__name__)

_BRAKE_S: Final = 0.5  # between two times, should somebody undo it at once
_LOOK_EVERY_S: Final = 5.0  # for what the kernel does not announce
_READY: Final = Condition(ready=True)


class Host:
    """Bridge and table, and what of which pod is in the maps. Changes of either are made one at a time."""

    def __init__(self, bridge: Bridge, addresses: Addresses, disposal: Disposal, registry: CollectorRegistry) -> None:
        self._bridge = bridge
        self._addresses = addresses
        self._disposal = disposal
        self._table = ruleset.table(bridge.name)
        self._nftables: Nftables | None = None
        self._cannot = _READY  # do what a pod needs: found out once
        self._broken = _READY  # now: somebody removed bridge or rules, and they cannot be made again
        self._lock = asyncio.Lock()
        self._open: dict[str, Sequence[Element]] = {}
        self._ensured = False
        self._handle: int | None = None
        self._rules: frozenset[int] = frozenset()
        self._changed = asyncio.Event()
        self._restored = Counter(
            "criw_network_restored", "Times that bridge or rules were made again.", registry=registry
        )

    @property
    def condition(self) -> Condition:
        return self._broken if self._cannot.ready else self._cannot

    @property
    def has_ports(self) -> bool:
        return bool(self._open)

    async def probe(self) -> None:
        """Find out whether this host can do what a pod needs, leaving nothing on it."""
        try:
            self._nftables = await asyncio.to_thread(Nftables.load)
        except FailedPrecondition as err:
            self._cannot = Condition(ready=False, reason="NftablesMissing", message=str(err))
        else:
            try:
                await in_fresh_thread(lambda: self._run(self._text(), check_only=True))
            except Failed as err:
                self._cannot = Condition(ready=False, reason="NftablesRefused", message=str(err))
        try:
            await in_fresh_thread(self._bridge.rehearse)
        except OSError as err:
            message = (
                f"cannot make links for pods: {err.strerror}; is this agent root, with bridge and veth in the kernel?"
            )
            self._cannot = Condition(ready=False, reason="NetlinkRefused", message=message)
        if not self._cannot.ready:
            log.error("pods cannot be attached", extra={"reason": self._cannot.reason, "error": self._cannot.message})

    def _run(self, commands: str, *, check_only: bool = False) -> None:
        if self._nftables is None:
            raise FailedPrecondition(self._cannot.message)
        self._nftables.run(commands, check_only=check_only)

    def _text(self) -> str:
        present = [element for elements in self._open.values() for element in elements]
        return ruleset.replace(self._bridge.name, self._addresses.in_force, present)

    def ranges_changed(self) -> None:
        """What is there is not what there must be: `ensure` or `keep` will see to it."""
        self._ensured = False
        self._changed.set()

    async def ensure(self) -> None:
        """Bridge and table as they must be; made on first need, and again if somebody removed them.

        Raises FailedPrecondition where a range is somebody else's, and what `probe` found wrong.
        """
        if not self._cannot.ready:
            raise FailedPrecondition(self._cannot.message)
        async with self._lock:
            if not (self._ensured and self._stands()):
                await in_fresh_thread(self._make)

    def _stands(self) -> bool:
        """A look of 0.1 ms that waits for nothing: a thread would take longer to start."""
        return self._bridge.exists() and nftables.table_handle(self._table) == self._handle

    def _guarded(self) -> bool:
        handle = nftables.table_handle(self._table)
        return handle is not None and handle == self._handle and nftables.rule_handles(self._table) == self._rules

    def _make(self) -> None:
        self._ensured = False
        self._addresses.check()
        self._bridge.ensure(self._addresses.in_force)
        self._write()
        self._ensured = True

    def _write(self) -> None:
        """The whole table. Only with the guard in it is the host's loopback led to pods."""
        self._run(self._text())
        self._handle = nftables.table_handle(self._table)
        self._rules = nftables.rule_handles(self._table)
        if any(network.version == 4 for network in self._addresses.in_force):
            self._bridge.lead_loopback(allowed=True)

    async def open_ports(self, pod_id: str, elements: Sequence[Element]) -> None:
        async with self._lock:
            self._open[pod_id] = elements
            await in_fresh_thread(lambda: self._run(ruleset.add(self._bridge.name, elements)))

    def note_ports(self, pod_id: str, elements: Sequence[Element]) -> None:
        """What an earlier process opened: it will be in the table when that is made again."""
        self._open[pod_id] = elements

    async def close_ports(self, pod_id: str) -> None:
        """A pod without open ports is a success."""
        if pod_id not in self._open:
            return
        async with self._lock:
            closed = self._open.pop(pod_id)
            try:
                await in_fresh_thread(lambda: self._run(ruleset.delete(self._bridge.name, closed)))
            except Failed:
                # One of the elements is not there: it was never added, or somebody flushed the rules of the host.
                try:
                    await in_fresh_thread(self._write)
                except BaseException:
                    self._open[pod_id] = closed
                    raise

    async def keep(self) -> None:
        """Look after bridge and table, when the table changes and now and then, for ever."""
        loop = asyncio.get_running_loop()
        with nftables.watch_tables() as events:

            def look() -> None:
                try:
                    gone = nftables.takes_away(events.recv(RECEIVE_BYTES), self._table)
                except BlockingIOError:
                    return
                except OSError:  # more events than the socket holds
                    gone = True
                if gone:
                    self._changed.set()

            loop.add_reader(events, look)
            try:
                while True:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_EVERY_S):
                            await self._changed.wait()
                    self._changed.clear()
                    if await self._restore():
                        await asyncio.sleep(_BRAKE_S)
            finally:
                loop.remove_reader(events)

    async def _restore(self) -> bool:
        """Make bridge and table again, if pods need them and they are not as they were made; whether they were not."""
        if not self._addresses.held() or not self._cannot.ready:
            self._broken = _READY
            return False
        async with self._lock:
            try:
                if not await in_fresh_thread(self._guarded):
                    await in_fresh_thread(lambda: self._bridge.lead_loopback(allowed=False))
                elif self._ensured and await in_fresh_thread(lambda: self._bridge.as_made(self._addresses.in_force)):
                    self._broken = _READY
                    return False
                await in_fresh_thread(self._make)
            except (Fault, OSError) as err:
                self._broken = Condition(
                    ready=False,
                    reason="NetworkRemoved",
                    message=f"cannot make the bridge and rules of pods again, which somebody changed: {err}",
                )
                log.warning("cannot restore the network of pods", extra={"error": str(err)})
            else:
                self._broken = _READY
                self._restored.inc()
                log.warning("made bridge and rules again: ranges or somebody else changed them")
        return True

    async def clear(self) -> None:
        """Take bridge and table away."""
        async with self._lock:
            if self._nftables is not None and nftables.table_handle(self._table) is not None:
                await in_fresh_thread(lambda: self._run(ruleset.remove(self._bridge.name)))
            await self._disposal.delete(self._bridge.name)
            self._ensured = False

    async def close(self) -> None:
        if self._nftables is not None:
            await asyncio.to_thread(self._nftables.close)
