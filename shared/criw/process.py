"""Running programs: argument lists only, output captured, nothing left running when the caller goes away."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from criw.errors import DeadlineExceeded, Failed, FailedPrecondition

_MESSAGE_LIMIT = 2000


@dataclass(frozen=True)
class Completed:
    """What a program left: its exit code (negative: the signal that ended it) and its output."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def message(self) -> str:
        """What it said about its failure, for an error message."""
        said = (self.stderr.strip() or self.stdout.strip()).decode(errors="replace")
        return said[-_MESSAGE_LIMIT:] or f"exit code {self.code}"


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdout: int = asyncio.subprocess.PIPE,
    stderr: int = asyncio.subprocess.PIPE,
    timeout_s: float = 60.0,
) -> Completed:
    """Run a program to its end. If the caller is cancelled or `timeout_s` passes it is killed and reaped.

    Killed with it is whatever it started that has not made a session of its own. Output that is sent to a descriptor of
    the caller's is empty in the result.

    Raises FailedPrecondition if there is no such program, DeadlineExceeded after `timeout_s`.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    except FileNotFoundError as err:
        raise FailedPrecondition(f"cannot run {argv[0]}: there is no such program; install it") from err
    except (PermissionError, NotADirectoryError) as err:
        raise FailedPrecondition(f"cannot run {argv[0]}: {err.strerror}; is it the right path?") from err
    try:
        said, complained = await asyncio.wait_for(process.communicate(stdin), timeout_s)
    except TimeoutError as err:
        raise DeadlineExceeded(f"cannot finish {argv[0]} {' '.join(argv[1:3])}: no end after {timeout_s:g} s") from err
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        # A descendant in a session of its own may hold the pipes open; wait() would wait for it, too.
        process._transport.close()  # noqa: SLF001 — asyncio closes them in no other way
        await asyncio.shield(process.wait())
    assert process.returncode is not None
    return Completed(process.returncode, said or b"", complained or b"")


async def run_checked(
    argv: Sequence[str], *, what: str, stdin: bytes | None = None, timeout_s: float = 60.0
) -> Completed:
    """As `run`; raises Failed("cannot <what>: <what the program said>") if it does not exit with 0."""
    done = await run(argv, stdin=stdin, timeout_s=timeout_s)
    if done.code:
        raise Failed(f"cannot {what}: {done.message}")
    return done
