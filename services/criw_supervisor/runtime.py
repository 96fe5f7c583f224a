"""Runtime handlers: the OCI runtime's command line, and conmon, which holds a container's process for us.

conmon starts the runtime, keeps the container's stdio and writes its log, waits for its end and leaves the exit code
in a file; it outlives the supervisor.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.config.supervisor import Runtime, SupervisorSection
from criw.errors import Failed, FailedPrecondition, Fault
from criw.operations import together
from criw.process import run

log = logging.getLogger(__name__)
CREATE_LIMIT_S: Final = 120.0
PROBE: Final = "probe-"  # begins the names of what a probe makes
JsonObject = dict[str, object]


@dataclass(frozen=True)
class Launch:
    """How a container's process is to be started."""

    container_id: str
    name: str
    bundle: Path  # has config.json
    log_path: str  # "" for no log
    exit_dir: Path
    terminal: bool
    stdin: bool
    stdin_once: bool


class Handler:
    """One OCI runtime (any program with the command line runc defined). `root` is its state directory."""

    def __init__(self, name: str, runtime: Runtime, *, conmon: str, root: Path) -> None:
        self.name = name
        self.program = shutil.which(os.fspath(runtime.path)) or os.fspath(runtime.path)
        self.root = root
        self._conmon = conmon
        self._args = [*runtime.args, "--root", os.fspath(root)]

    def _command(self, *words: str) -> list[str]:
        return [self.program, *self._args, *words]

    async def create(self, launch: Launch) -> int:
        """Make the container up to the point where its process waits to be started; the pid of that process.

        Raises Failed with what the runtime said. Nothing is left of it then but what `delete(force=True)` removes.
        """
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
        )
        complaints = launch.bundle / "conmon.log"
        try:
            with complaints.open("wb") as stderr:  # no pipe: conmon would hold it for its whole life
                try:
                    # conmon forks itself into the background; the sync pipe tells how the runtime fared.
                    await run(
                        self._conmon_command(launch),
                        env={**os.environ, "_OCI_SYNCPIPE": str(write_end)},
                        cwd=launch.bundle,  # where it leaves a file if the container runs out of memory
                        pass_fds=[write_end],
                        stdout=asyncio.subprocess.DEVNULL,
                        stderr=stderr.fileno(),
                        timeout_s=CREATE_LIMIT_S,
                    )
                finally:
                    os.close(write_end)
            line = await asyncio.wait_for(reader.readline(), CREATE_LIMIT_S)
        finally:
            transport.close()
        return _created_pid(launch, line, complaints)

    def _conmon_command(self, launch: Launch) -> list[str]:
        words = [
            self._conmon,
            *("--api-version", "1", "--cid", launch.container_id, "--cuuid", launch.container_id),
            *("--name", launch.name, "--runtime", self.program, "--bundle", os.fspath(launch.bundle)),
            *("--container-pidfile", os.fspath(launch.bundle / "pid")),
            *("--conmon-pidfile", os.fspath(launch.bundle / "conmon.pid")),
            *("--exit-dir", os.fspath(launch.exit_dir), "--full-attach", "--log-level", "error"),
            *("--log-path", f"k8s-file:{launch.log_path}" if launch.log_path else "off:"),
            *(f"--runtime-arg={word}" for word in self._args),
        ]
        if launch.terminal:
            words.append("--terminal")
        if launch.stdin:
            words.append("--stdin")
            if not launch.stdin_once:
                words.append("--leave-stdin-open")
        return words

    async def start(self, container_id: str) -> None:
        """Let the created process run the container's command."""
        await self._must(f"start container {container_id}", "start", container_id)

    async def update(self, container_id: str, resources: JsonObject) -> None:
        """Change the limits of a container; `resources` is an OCI LinuxResources object."""
        what = f"update the resources of container {container_id}"
        document = json.dumps(resources).encode()
        await self._must(what, "update", "--resources", "-", container_id, stdin=document)

    async def status(self, container_id: str) -> str:
        """The runtime's word for the container's state; "" if it does not know it."""
        done = await run(self._command("state", container_id))
        return str(json.loads(done.stdout)["status"]) if done.code == 0 else ""

    async def delete(self, container_id: str, *, force: bool = False) -> None:
        """Remove what the runtime keeps of the container; nothing to remove is a success."""
        if not (self.root / container_id).exists():
            return
        words = ("delete", "--force") if force else ("delete",)
        await self._must(f"delete container {container_id}", *words, container_id)

    async def _must(self, what: str, *words: str, stdin: bytes | None = None) -> None:
        """Run a command of the runtime. Raises Failed("cannot <what>: <what the runtime said>")."""
        done = await run(self._command(*words), stdin=stdin)
        if done.code:
            raise Failed(f"cannot {what}: {runtime_words(done.message)}")

    def exec_command(self, container_id: str, process: Path, pid_file: Path) -> list[str]:
        """The command that runs a further process (an OCI process object) in the container and leaves it to us."""
        return self._command(
            "exec", "--detach", "--process", os.fspath(process), "--pid-file", os.fspath(pid_file), container_id
        )

    async def probe(self, cgroup: str) -> str:
        """Make and delete a container that does nothing. Why it does not work here; "" when it does."""
        if shutil.which(self.program) is None:
            return f"{self.program} is not installed"
        container_id = f"{PROBE}{self.name}-{os.getpid()}"
        with tempfile.TemporaryDirectory(prefix=PROBE, dir=self.root.parent) as directory:
            bundle = Path(directory)
            (bundle / "rootfs").mkdir()
            (bundle / "config.json").write_text(json.dumps(_probe_spec(f"{cgroup}/{container_id}")))
            try:
                done = await run(self._command("create", "--bundle", directory, container_id), timeout_s=20)
                # A program that is not there is told only after namespaces, cgroups and mounts have worked.
                works = done.code == 0 or "/probe" in done.message
                return "" if works else done.message
            except Fault as err:
                return str(err)
            finally:
                await self.delete(container_id, force=True)


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


def _created_pid(launch: Launch, line: bytes, complaints: Path) -> int:
    try:
        told = json.loads(line)
        pid = int(told.get("pid", told.get("data", -1)))
        message = str(told.get("message", ""))
    except ValueError:
        pid, message = -1, ""
    if pid > 0:
        return pid
    cause = message.strip() or complaints.read_text(errors="replace").strip() or "conmon ended without a word"
    raise Failed(f"cannot create container {launch.name}: {runtime_words(cause)}")


def runtime_words(text: str) -> str:
    """The message inside the log line the runtime wrote (runc: `level=error msg="…"`), else the text."""
    with contextlib.suppress(ValueError):
        _, found, quoted = text.rpartition('msg="')
        if found:
            return str(json.loads(f'"{quoted[: quoted.rindex(chr(34))]}"'))
    return text


class Handlers:
    """The configured handlers, and which of them work on this host, found out by trying."""

    def __init__(self, configured: dict[str, Handler], broken: dict[str, str], default: str) -> None:
        self._configured = configured
        self.broken = broken  # name -> why
        self.default = default  # "" if none works

    @property
    def working(self) -> list[str]:
        return [name for name in self._configured if name not in self.broken]

    def get(self, name: str) -> Handler:
        """The handler a request names ("": the default). Raises FailedPrecondition if it does not work here."""
        name = name or self.default
        if name in self._configured and name not in self.broken:
            return self._configured[name]
        broken = "; ".join(f"{one}: {why}" for one, why in self.broken.items())
        why = self.broken.get(name, "it is not configured in [supervisor.runtimes]" if name else broken)
        known = ", ".join(self.working) or "none"
        raise FailedPrecondition(f"cannot use runtime handler {name or '(default)'}: {why}; working handlers: {known}")

    def of_record(self, name: str) -> Handler:
        """The handler an existing container was made with, working or not. Raises FailedPrecondition."""
        if name not in self._configured:
            raise FailedPrecondition(
                f"cannot manage containers of runtime handler {name}: it is not configured in [supervisor.runtimes] now"
            )
        return self._configured[name]


async def probe_handlers(section: SupervisorSection, run_dir: Path) -> Handlers:
    """Try every configured handler and say in the log what does not work, and why.

    Raises FailedPrecondition if conmon is missing.
    """
    conmon = shutil.which(os.fspath(section.conmon))
    if conmon is None:
        raise FailedPrecondition(f"cannot run containers: {section.conmon} is missing; install the package conmon")
    configured: dict[str, Handler] = {}
    broken: dict[str, str] = {}

    async def probe(handler: Handler) -> None:
        if why := await handler.probe(section.cgroup_parent):
            broken[handler.name] = why
            log.warning("runtime handler does not work here", extra={"handler": handler.name, "why": why})

    for name, runtime in section.runtimes.items():
        root = run_dir / "runtime" / name
        root.mkdir(parents=True, exist_ok=True)
        configured[name] = Handler(name, runtime, conmon=conmon, root=root)
    await together(*(probe(handler) for handler in configured.values()))
    default = section.default_runtime or next((name for name in configured if name not in broken), "")
    handlers = Handlers(configured, broken, default)
    log.info("runtime handlers", extra={"working": ",".join(handlers.working) or "none", "default": default or "none"})
    return handlers
