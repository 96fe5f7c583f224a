"""The live instances of an agent, and which of them takes the next call."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import PermissionDenied, Unavailable
from criw.rpc.client import DirectChannel

PAUSE_S: Final = 0.02
_LONGEST_WAIT_S: Final = 60.0  # for a call without a deadline
_GRANULARITY_NS: Final = 100_000_000


@dataclass
class Instance:
    """A connection to one socket. `running` counts the calls it is answering for us."""

    channel: DirectChannel
    running: int = 0
    taken: int = 0

    @contextmanager
    def busy(self) -> Iterator[DirectChannel]:
        self.running += 1
        self.taken += 1
        try:
            yield self.channel
        finally:
            self.running -= 1


class Instances:
    """The instances of one agent: every socket in its directory that somebody listens on."""

    def __init__(self, agent: str, directory: Path) -> None:
        self._agent = agent
        self._directory = directory
        self._known: dict[Path, Instance] = {}
        self._leaving: list[Instance] = []  # their sockets are gone, their last calls for us are not
        self._seen_ns = 0  # when the directory had last changed as we read it

    async def connected(self, *, until: float | None) -> Instance:
        """The least busy instance, connected. Waits for one that is restarting, until the monotonic time `until`.

        Raises Unavailable when none comes (back) up in time.
        """
        limit = time.monotonic() + _LONGEST_WAIT_S if until is None else until
        while True:
            for instance in self._by_load():
                try:
                    await instance.channel.__connect__()
                except ConnectionRefusedError:
                    continue
                except PermissionError as err:
                    raise PermissionDenied(
                        f"cannot reach criw-{self._agent} in {self._directory}: only root and the sockets' group may; "
                        "run the door as one of them"
                    ) from err
                return instance
            if time.monotonic() >= limit:
                raise Unavailable(f"cannot reach criw-{self._agent} in {self._directory}; is it running?")
            await asyncio.sleep(PAUSE_S)

    def _by_load(self) -> list[Instance]:
        self._look()
        return sorted(self._known.values(), key=lambda instance: (instance.running, instance.taken))

    def _look(self) -> None:
        """Learn which sockets are there, if any came or went since the last look: one stat(2) a call else."""
        try:
            changed_ns = self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            changed_ns = -1
        if changed_ns == self._seen_ns:
            return
        there = set(self._directory.glob("*.sock"))
        for path in self._known.keys() - there:
            self._leaving.append(self._known.pop(path))
        for path in sorted(there - self._known.keys()):
            self._known[path] = Instance(DirectChannel(path))
        for instance in [one for one in self._leaving if not one.running]:
            self._leaving.remove(instance)
            instance.channel.close()
        # A change within the clock's granularity of our look would be missed: look again until it is past.
        self._seen_ns = changed_ns if time.time_ns() - changed_ns > _GRANULARITY_NS else 0

    def close(self) -> None:
        for instance in (*self._known.values(), *self._leaving):
            instance.channel.close()
