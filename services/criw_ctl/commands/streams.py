"""Commands that join our terminal to a container."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from criw_ctl.cli import PROGRAM, WRONG_USAGE, app, complain, with_door

Target = Annotated[str, typer.Argument(metavar="NAME", help="A container, a pod with one that runs, or POD/CONTAINER.")]


@contextlib.contextmanager
def _endings(left: str) -> Iterator[None]:
    """Tell how a session ended that did not come to its own end; `left` is what was said to run on."""
    from criw_ctl.interruptions import Interrupted
    from criw_ctl.streams import Detached, NotRun

    try:
        yield
    except Interrupted as err:
        raise typer.Exit(err.exit_code) from None
    except NotRun as err:
        complain(str(err))
        raise typer.Exit(err.exit_code) from err
    except Detached:
        complain(f"detached from {left}")


@app.command("exec", context_settings=PROGRAM)
def execute(
    context: typer.Context,
    name: Target,
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="With its arguments.")],
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Give it our input.")] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give it a terminal; Ctrl-P Ctrl-Q leaves it.")] = False,
    sync: Annotated[
        bool, typer.Option("--sync", help="One call (ExecSync): output at the end, up to the crew's limit.")
    ] = False,
) -> None:
    """Run a command in a container, show its output as it comes, and exit with its code."""
    from criw_ctl import sessions

    argv = command[command[0] == "--" :]  # as kubectl's users write it
    if not argv:
        complain("cannot run nothing: a command must follow --; see criwctl exec --help")
        raise typer.Exit(WRONG_USAGE)
    if sync:
        if interactive or tty:
            complain("cannot give input or a terminal to one call: leave out --sync; see criwctl exec --help")
            raise typer.Exit(WRONG_USAGE)
        reply = with_door(context, lambda door: sessions.execute_sync(door, name, argv))
        for stream, data in ((sys.stdout.buffer, reply.stdout), (sys.stderr.buffer, reply.stderr)):
            stream.write(data)
            stream.flush()
        raise typer.Exit(reply.exit_code)
    shape = sessions.Shape(stdin=interactive, tty=tty)
    with _endings(f"the command in {name}, whose terminal is closed"):
        raise typer.Exit(with_door(context, lambda door: sessions.execute(door, name, argv, shape)))


@app.command()
def attach(
    context: typer.Context,
    name: Target,
    stdin: Annotated[
        bool | None,
        typer.Option("-i/--no-stdin", "--stdin/", help="Type into it (default: if it was made with stdin)."),
    ] = None,
) -> None:
    """Show what a container writes from now on, and type into it; Ctrl-P Ctrl-Q leaves its terminal."""
    from criw_ctl import sessions

    with _endings(f"{name}, which runs on"):
        with_door(context, lambda door: sessions.attach(door, name, stdin=stdin))


@app.command("cp", context_settings={"ignore_unknown_options": True})
def copy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FROM", help="NAME:PATH, a path here, or - for a tar stream.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same; one of the two is in a container.")],
) -> None:
    """Copy files into or out of a container, which must have tar; DIRECTORY/. means what is in it."""
    from criw.errors import InvalidArgument
    from criw_ctl import copying

    try:
        places = copying.parse_places(source, target)
    except InvalidArgument as err:
        complain(f"{err}; see criwctl cp --help")
        raise typer.Exit(WRONG_USAGE) from err
    with _endings(""):
        complete = with_door(context, lambda door: copying.copy(door, *places, complain))
    raise typer.Exit(0 if complete else 1)


@app.command("port-forward")
def port_forward(
    context: typer.Context,
    pod: Annotated[str, typer.Argument(metavar="POD", help="A pod, or a container in it.")],
    ports: Annotated[
        list[str], typer.Argument(metavar="[[ADDRESS:]LOCAL:]REMOTE", help="No LOCAL but a colon: any free port.")
    ],
) -> None:
    """Let local TCP ports lead to ports of a pod until Ctrl-C."""
    from criw.errors import InvalidArgument
    from criw_ctl import forward

    try:
        wishes = [forward.parse_forward(text) for text in ports]
    except InvalidArgument as err:
        complain(f"{err}; see criwctl port-forward --help")
        raise typer.Exit(WRONG_USAGE) from err

    def say(line: str) -> None:
        print(line, flush=True)

    with _endings(""):
        with_door(context, lambda door: forward.forward(door, pod, wishes, say=say, complain=complain))
