"""A runtime handler: what the supervisor asks of whoever holds the processes of containers."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from criw.errors import Failed
from criw_supervisor.cgroups.usage import CgroupUsage
from criw_supervisor.ledger.records import ContainerRecord
from criw_supervisor.oci import JsonObject


@dataclass(frozen=True)
class Task:
    """A container as its handler knows it: everything that names it, so that a handler need remember nothing."""

    id: str
    cgroup: str
    pid: int = 0  # of its first process, in the host's namespace; 0 until it is created
    pid_started: int = 0  # start time in clock ticks since boot: with it a pid names one process only


def task_of(record: ContainerRecord) -> Task:
    """The task of a container that was made."""
    return Task(record.id, record.cgroup, record.pid, record.pid_started)


@dataclass(frozen=True)
class Launch:
    """What a task is made from."""

    task: Task
    name: str  # for messages
    document: JsonObject  # the OCI runtime configuration
    log_path: str = ""  # its directory is there; "" for no log
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False


LOST_CODE: Final = 255  # as other runtimes report an end nobody could learn


@dataclass(frozen=True)
class End:
    """How and when a task's first process ended."""

    code: int  # 128 + the signal for one that was killed
    at_ns: int
    out_of_memory: bool = False
    lost: bool = False  # nobody could learn the code


class NotRun(Failed):
    """The runtime could not run a further command; why is what it wrote to the command's standard error."""


class Exec(Protocol):
    """A further command that runs in a task."""

    async def wait(self) -> int:
        """Wait for its end; its exit code (128 + the signal for one that was killed)."""

    async def kill(self) -> None:
        """End the command and what it started, as far as that can be told from the container's own processes."""


@dataclass(frozen=True)
class ExecSession:
    """How whoever serves a session runs a further command in a task, without the supervisor.

    It is a program that starts the command and leaves it to its own caller, who must be a subreaper. What the program
    has for standard streams are the command's, or with a terminal that is sent to a socket.
    """

    start: tuple[str, ...]  # the program and its arguments
    process_file: Path  # where it reads what to run
    process: bytes  # and what is to be there
    pid_file: Path  # where it leaves the command's pid
    console_socket: Path | None  # where it sends the terminal, if there is one
    oom_score_adj: int


@dataclass(frozen=True)
class AttachSession:
    """Where the streams of a task's first process are served: see conmon(8)."""

    socket: Path  # SOCK_SEQPACKET; longer than a path may be that is connected to directly
    control: Path  # a FIFO that takes the terminal's size


class Handler(Protocol):
    """All methods raise Failed with the runtime's own words when it refuses."""

    @property
    def name(self) -> str: ...

    async def create(self, launch: Launch) -> Task:
        """Make the task up to the point where its process waits to be started.

        What was made stays, also when this fails, until `delete`.
        """

    async def start(self, task: Task) -> None:
        """Let the created process run the container's command."""

    async def kill(self, task: Task, number: int) -> bool:
        """Send a signal to the task's first process. False if it is gone."""

    async def kill_all(self, task: Task) -> None:
        """SIGKILL everything in the task until nothing is left. Raises Unavailable if something survives."""

    async def update(self, task: Task, resources: JsonObject) -> None:
        """Change limits; `resources` is an OCI LinuxResources object with what is to change."""

    async def set_oom_score(self, task: Task, score: int) -> None:
        """Set the oom_score_adj of everything in the task, and of what is run in it later."""

    async def exec(self, task: Task, process: JsonObject, *, stdout: int, stderr: int) -> Exec:
        """Run a further command, an OCI process object, with these descriptors.

        Raises NotRun if the runtime cannot, FailedPrecondition if the task is being removed.
        """

    async def release(self, task: Task) -> None:
        """Give back what the runtime holds of an ended task in which nothing runs any more."""

    async def delete(self, task: Task, *, ended: bool) -> None:
        """Kill what is left of a task and remove everything of it but its log. Repeating it is a success.

        `ended` says that its end was recorded, so that nobody can be working on it any more.
        """

    def watch(self, task: Task) -> None:
        """From now on tell the task's end in `ends`; at once if it has ended already."""

    def ends(self) -> AsyncIterator[str]:
        """Ids of watched tasks that have ended, for ever. One may come twice."""

    async def end_of(self, task: Task) -> End | None:
        """How the task ended; None while it has not, or while that is about to be told."""

    async def recover(self, task: Task) -> bool:
        """Whether the task runs its command: what a new supervisor asks of one that it has as created only."""

    async def reopen_log(self, task: Task, path: Path) -> None:
        """Write the log to a new file at the same path, after somebody has renamed the old one.

        Its directory is there. Raises FailedPrecondition or Unavailable if nobody writes it.
        """

    def session(self, task: Task, process: JsonObject, *, scratch: Path) -> ExecSession:
        """Describe how to run a further command. What it needs for a while goes into `scratch`, a short directory.

        Raises InvalidArgument for a command the runtime cannot be told.
        """

    async def streams(self, task: Task) -> AttachSession:
        """Where the task's standard streams are. Raises FailedPrecondition if nobody holds them any more."""

    async def usage(self, tasks: Sequence[Task]) -> Mapping[str, CgroupUsage]:
        """What tasks use, by id; those that are gone are left out."""

    def close(self) -> None:
        """Stop watching."""
