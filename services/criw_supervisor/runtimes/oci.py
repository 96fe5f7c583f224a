"""Handlers of type "oci": any OCI runtime with the command line runc defined, its containers held by conmon."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from criw.config.supervisor import Runtime
from criw.errors import Failed, FailedPrecondition, Fault
from criw.process import run, runtime_words
from criw_supervisor import processes
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.cgroups.usage import CgroupUsage, read_usage
from criw_supervisor.ledger.places import Places
from criw_supervisor.oci import JsonObject
from criw_supervisor.runtimes import conmon
from criw_supervisor.runtimes.advisories import known
from criw_supervisor.runtimes.bundle import Bundle, encoded
from criw_supervisor.runtimes.command import OciExec, start_command
from criw_supervisor.runtimes.handler import LOST_CODE, AttachSession, End, ExecSession, Launch, Task
from criw_supervisor.runtimes.watch import Watch

log = logging.getLogger(__name__)
PROBE: Final = "probe-"  # begins the names of what a probe makes
_PROBE_LIMIT_S: Final = 20.0
_DELETES_AT_ONCE: Final = 2
_PROBE_WORDS: Final = 2000  # bytes of what the runtime says


class OciHandler:
    """A handler (`runtimes.handler.Handler`). Needs this process to be a subreaper (see `processes`)."""

    def __init__(
        self, name: str, runtime: Runtime | None, *, monitor: str, monitors: str, places: Places, cgroups: Cgroups
    ) -> None:
        """`monitors` is the cgroup of the monitors, each a process of the program `monitor`.

        Without `runtime`, for containers whose handler is not configured any more: all but what the runtime does.
        """
        self.name = name
        self._root = places.runtime(name)
        self._places = places
        self._cgroups = cgroups
        self._monitor = monitor
        self._monitors = monitors
        self.program = ""
        self._words: list[str] = []
        if runtime is not None:
            self.program = shutil.which(os.fspath(runtime.path)) or os.fspath(runtime.path)
            self._words = [self.program, *runtime.args, "--root", os.fspath(self._root)]
        self._watch = Watch()
        self._deletes = asyncio.Semaphore(_DELETES_AT_ONCE)

    def _bundle(self, task: Task) -> Bundle:
        return Bundle(self._places.bundle(task.id))

    @property
    def _runtime(self) -> list[str]:
        """The program and its global arguments. Raises FailedPrecondition if the handler is not configured."""
        if not self._words:
            raise FailedPrecondition(
                f"cannot manage containers of runtime handler {self.name}: it is not configured in "
                "[supervisor.runtimes] now"
            )
        return self._words

    async def _must(self, what: str, *words: str, stdin: bytes | None = None) -> None:
        """Run a command of the runtime. Raises Failed("cannot <what>: <what the runtime said>")."""
        done = await run([*self._runtime, *words], stdin=stdin)
        if done.code:
            raise Failed(f"cannot {what}: {runtime_words(done.message)}")

    # --- the life of a task

    async def create(self, launch: Launch) -> Task:
        bundle = self._bundle(launch.task)
        await asyncio.to_thread(bundle.write, launch.document)
        # With us, what ends or limits our cgroup, as a service manager may, would end all containers; in the pod's,
        # its limits would hold up what tells of its end.
        place = partial(self._cgroups.enter, self._monitors)
        pid = await conmon.create(self._monitor, self._runtime, launch, bundle, place)
        started = processes.start_time(pid)
        if not started:
            raise Failed(f"cannot create container {launch.name}: its process ended before it was started")
        return Task(launch.task.id, launch.task.cgroup, pid, started)

    async def start(self, task: Task) -> None:
        await self._must(f"start container {task.id}", "start", task.id)

    async def kill(self, task: Task, number: int) -> bool:
        return await self._cgroups.ask(partial(self._signal, task, number))

    def _signal(self, task: Task, number: int) -> bool:
        there = processes.send_signal(task.pid, task.pid_started, number)
        if there and number == signal.SIGKILL:
            self._cgroups.thaw(task.cgroup)  # a frozen process is not killed, nor an init whose children are frozen
        return there

    async def update(self, task: Task, resources: JsonObject) -> None:
        what = f"update the resources of container {task.id}"
        await self._must(what, "update", "--resources", "-", task.id, stdin=json.dumps(resources).encode())

    async def set_oom_score(self, task: Task, score: int) -> None:
        def write() -> None:
            for pid in self._cgroups.processes(task.cgroup):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    Path(f"/proc/{pid}/oom_score_adj").write_text(str(score))
            self._bundle(task).change_process(oomScoreAdj=score)

        await asyncio.to_thread(write)

    async def kill_all(self, task: Task) -> None:
        await self._cgroups.kill(task.cgroup)

    async def release(self, task: Task) -> None:
        await self._delete(task.id, ended=True)

    async def delete(self, task: Task, *, ended: bool) -> None:
        if not ended:
            # They go first: conmon would record the end of what is being forgotten.
            await conmon.kill_makers(self._bundle(task))
        await self.kill_all(task)
        await self._delete(task.id, ended=ended)
        await self._cgroups.remove(task.cgroup)
        await asyncio.to_thread(self._remove_rest, task)

    async def _delete(self, container_id: str, *, ended: bool) -> None:
        if not (self._root / container_id).exists() or not self._words:
            return
        if ended:  # without --force, which makes runc 1.2 and later wait for what it kills: a tenth of a second
            async with self._deletes:
                done = await run([*self._runtime, "delete", container_id])
            if done.code == 0:
                return
        await self._must(f"delete container {container_id}", "delete", "--force", container_id)

    def _remove_rest(self, task: Task) -> None:
        shutil.rmtree(self._root / task.id, ignore_errors=True)
        self._bundle(task).remove()

    # --- its end

    def watch(self, task: Task) -> None:
        self._watch.add(task.id, self._bundle(task))

    def ends(self) -> AsyncIterator[str]:
        return self._watch.ended()

    async def end_of(self, task: Task) -> End | None:
        bundle = self._bundle(task)
        there = conmon.is_there(bundle)  # asked first: what it leaves is there before it ends
        if (found := conmon.read_exit(bundle)) is None:
            return None if there else End(LOST_CODE, time.time_ns(), lost=True)
        killed = await self._cgroups.ask(partial(self._cgroups.oom_kills, task.cgroup))
        return End(found.code, found.at_ns, out_of_memory=bool(killed and found.code))

    async def recover(self, task: Task) -> bool:
        done = await run([*self._runtime, "state", task.id])
        try:
            return done.code == 0 and json.loads(done.stdout)["status"] == "running"
        except (ValueError, KeyError, TypeError) as err:
            raise Failed(f"cannot learn the state of container {task.id}: {self.program} answers nonsense") from err

    def close(self) -> None:
        self._watch.close()
        self._cgroups.remove_empty(self._monitors, list(map(os.fspath, self._cgroups.directories(self._monitors))))

    # --- further commands

    async def exec(self, task: Task, process: JsonObject, *, stdout: int, stderr: int) -> OciExec:
        files = self._bundle(task).exec_files(secrets.token_hex(8))
        members = partial(self._cgroups.processes, task.cgroup)
        return await start_command(
            self._runtime, task.id, process, files=files, members=members, stdout=stdout, stderr=stderr
        )

    def session(self, task: Task, process: JsonObject, *, scratch: Path) -> ExecSession:
        stem = f"exec-{secrets.token_hex(8)}"
        process_file, pid_file = scratch / f"{stem}.json", scratch / f"{stem}.pid"
        words = ["exec", "--detach", "--process", os.fspath(process_file), "--pid-file", os.fspath(pid_file)]
        console = scratch / f"{stem}.tty" if process["terminal"] else None
        if console is not None:
            words += ["--console-socket", os.fspath(console)]
        return ExecSession(
            start=(*self._runtime, *words, task.id),
            process_file=process_file,
            process=encoded(process),
            pid_file=pid_file,
            console_socket=console,
            oom_score_adj=score if isinstance(score := process.get("oomScoreAdj"), int) else 0,
        )

    # --- its streams and numbers

    async def reopen_log(self, task: Task, path: Path) -> None:
        await conmon.reopen_log(self._bundle(task), path)

    async def streams(self, task: Task) -> AttachSession:
        return await asyncio.to_thread(conmon.streams, self._bundle(task))

    async def usage(self, tasks: Sequence[Task]) -> Mapping[str, CgroupUsage]:
        def read() -> dict[str, CgroupUsage]:
            found = {task.id: read_usage(self._cgroups, task.cgroup) for task in tasks}
            return {task_id: usage for task_id, usage in found.items() if usage is not None}

        return await asyncio.to_thread(read)

    # --- whether it works

    async def probe(self, cgroup: str) -> str:
        """Make and delete a container that does nothing. Why it does not work here; "" when it does."""
        if shutil.which(self.program) is None:
            return f"{self.program} is not installed"
        self._root.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._cgroups.create, self._monitors)
        container_id = f"{PROBE}{self.name}-{os.getpid()}"
        with tempfile.TemporaryDirectory(prefix=PROBE, dir=self._root.parent) as directory:
            bundle = Path(directory)
            (bundle / "rootfs").mkdir()
            (bundle / "config.json").write_text(json.dumps(_probe_spec(f"{cgroup}/{container_id}")))
            try:
                try:
                    return await self._probe(bundle, container_id)
                finally:
                    await self._delete(container_id, ended=False)
            except Fault as err:
                return str(err)

    async def vulnerabilities(self) -> str:
        """What is known of the runtime's version: see `advisories.known`."""
        try:
            return known((await run([self.program, "--version"], timeout_s=_PROBE_LIMIT_S)).stdout.decode())
        except (Fault, OSError, ValueError):  # that it does not work is told by the probe
            return ""

    async def _probe(self, bundle: Path, container_id: str) -> str:
        words = ("create", "--bundle", os.fspath(bundle), container_id)
        said = bundle / "said"
        with said.open("wb") as file:  # no pipe: a process that waits to be started would hold it
            fd = file.fileno()
            done = await run([*self._runtime, *words], stdout=fd, stderr=fd, timeout_s=_PROBE_LIMIT_S)
        with said.open("rb") as file:
            file.seek(max(said.stat().st_size - _PROBE_WORDS, 0))
            message = file.read().decode(errors="replace").strip() or done.message
        # A program that is not there is told only after namespaces, cgroups and mounts have worked.
        works = done.code == 0 or "/probe" in message
        return "" if works else message


def _probe_spec(cgroup: str) -> JsonObject:
    return {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/probe"], "cwd": "/", "env": []},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
        },
    }
