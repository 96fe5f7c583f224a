"""Runs criwctl: every failure becomes one line on stderr and an exit code."""

import os
import sys
from collections.abc import Sequence

import typer

from criw.errors import Fault
from criw_ctl.cli import app, complain
from criw_ctl.commands import crew, images, pods, streams  # noqa: F401 — each makes its commands known

EXIT_FAILED = 1
INTERRUPTED = 130  # as a shell tells of a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; never returns. Exit codes: 1 failed, 2 wrong usage, 78 configuration, else the command's own."""
    try:
        code = app(args=argv, prog_name="criwctl", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as err:
        context = getattr(err, "ctx", None)
        command = context.command_path if context else "criwctl"
        complain(f"cannot understand the command line: {err.format_message().rstrip('.')}; see {command} --help")
        sys.exit(err.exit_code)
    except Fault as err:
        complain(str(err))
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `criwctl logs … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except OSError as err:
        complain(f"cannot go on: {err}")
        sys.exit(EXIT_FAILED)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
