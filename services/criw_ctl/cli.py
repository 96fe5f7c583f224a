"""The commands: what is typed becomes calls, answers become tables or JSON. The work is in the other modules.

They are imported inside the commands: none should wait for what only another one needs.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from criw.config.common import Common
from criw.config.crew import Config, CrewFacts
from criw.config.document import default_toml
from criw.config.load import DEFAULT_PATH, load
from criw.errors import Fault, InvalidArgument

if TYPE_CHECKING:
    from criw_ctl.door import Door

T = TypeVar("T")
C = TypeVar("C", bound=Common)
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130  # as a shell tells of a program that Ctrl-C ended

app = typer.Typer(
    help="Criw, a Kubernetes container runtime: the crew on this host, its pods, containers and images.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="The configuration file.")
app.add_typer(config_app, name="config")

_PROGRAM: Final = {"allow_interspersed_args": False}  # what follows an image or a container belongs to its program


class Output(StrEnum):
    """How answers are printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="For people, or for programs.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Ids, beginnings of ids, or names.")]
Image = Annotated[str, typer.Argument(metavar="IMAGE", help="A name, with tag or digest.")]
ContainerName = Annotated[str, typer.Argument(metavar="CONTAINER", help="An id, the beginning of one, or a name.")]


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"criwctl: {' '.join(message.split())}", file=sys.stderr)


@app.callback()
def _options(
    context: typer.Context,
    config_path: Annotated[
        Path | None, typer.Option("--config", help=f"Configuration file (default: {DEFAULT_PATH}).")
    ] = None,
) -> None:
    context.obj = config_path.absolute() if config_path else None


def _settings(context: typer.Context, model: type[C]) -> C:
    try:
        return load(model, context.obj)
    except InvalidArgument as err:
        complain(str(err))
        raise typer.Exit(os.EX_CONFIG) from err


def _with_door(context: typer.Context, work: Callable[["Door"], Awaitable[T]]) -> T:
    from criw_ctl.door import open_door

    settings = _settings(context, Common)

    async def main() -> T:
        async with open_door(settings) as door:
            return await work(door)

    return asyncio.run(main())


async def _each(names: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
    """Do it to each, go on where one fails, and exit with 1 if one did."""
    failed = False
    for name in names:
        try:
            await work(name)
        except Fault as err:
            complain(str(err))
            failed = True
    if failed:
        raise typer.Exit(1)


def _program() -> str:
    """How to call criwctl again."""
    called = Path(sys.argv[0])
    return "criwctl" if shutil.which("criwctl") or called.name != "criwctl" else str(called)


@app.command()
def up(context: typer.Context) -> None:
    """Start the crew on this host and watch over it until Ctrl-C; containers go on without it."""
    from criw import log
    from criw_ctl.crew import run_crew

    settings = _settings(context, Config)
    log.setup("criwctl", level=settings.log_level, style=settings.log_format)
    command = f"{_program()} --config {context.obj}" if context.obj else _program()

    def on_ready() -> None:
        lines = (
            f"The crew is ready; its CRI socket is {settings.socket('cri')}. In another terminal:",
            f"  {command} status",
            f"  {command} run -d --name web -p 8080:80 docker.io/library/nginx",
            f"  {command} ps",
            "Ctrl-C stops it.",
        )
        with contextlib.suppress(OSError):  # nobody reads any more
            print(*lines, sep="\n", flush=True)

    try:
        code = run_crew(settings, context.obj, on_ready)
    except Fault as err:
        complain(str(err))
        code = os.EX_CONFIG
    raise typer.Exit(code)


@app.command()
def status(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show each agent's health and version, and the conditions of the runtime; exit with 1 if something is wrong."""
    from criw_ctl import tables
    from criw_ctl.status import AGENT_COLUMNS, CONDITION_COLUMNS, take_status

    crew = asyncio.run(take_status(_settings(context, CrewFacts)))
    if output is Output.JSON:
        tables.print_json(crew.as_json())
    else:
        tables.print_table(
            AGENT_COLUMNS, [(each.agent, each.health, each.version, each.http, each.socket) for each in crew.agents]
        )
        print()
        tables.print_table(CONDITION_COLUMNS, crew.condition_rows())
    if crew.trouble:
        complain(crew.trouble)
    raise typer.Exit(0 if crew.good else 1)


@app.command()
def pull(context: typer.Context, image: Image, output: OutputOption = Output.TABLE) -> None:
    """Pull an image, with a bar for each layer."""
    from criw_ctl import images, tables

    image_id = asyncio.run(images.pull(_settings(context, Common), image))
    if output is Output.JSON:
        tables.print_json({"image": image, "id": image_id})
    else:
        print(image_id)


@app.command("images")
def list_images(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the images."""
    from criw.rpc.client import ask
    from criw_ctl import images, tables
    from criw_proto.runtime.v1 import ListImagesRequest

    reply = _with_door(context, lambda door: ask(door.images.list_images, ListImagesRequest()))
    if output is Output.JSON:
        tables.print_message(reply)
    else:
        tables.print_table(images.COLUMNS, images.rows(reply.images))


@app.command()
def rmi(
    context: typer.Context, names: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Names, digests or ids.")]
) -> None:
    """Remove images, each with all its names."""
    from criw_ctl import images

    _with_door(context, lambda door: _each(names, lambda name: images.remove(door, name)))


@app.command(context_settings=_PROGRAM)
def run(
    context: typer.Context,
    image: Image,
    args: Annotated[list[str] | None, typer.Argument(metavar="CMD", help="Instead of the image's own.")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Print the ids and leave it running.")] = False,
    remove: Annotated[bool, typer.Option("--rm", help="Remove the pod and its logs at the end.")] = False,
    env: Annotated[list[str] | None, typer.Option("-e", "--env", metavar="KEY=VALUE")] = None,
    publish: Annotated[
        list[str] | None, typer.Option("-p", "--publish", metavar="[HOSTIP:]HOST:CONTAINER[/PROTO]")
    ] = None,
    volume: Annotated[list[str] | None, typer.Option("-v", "--volume", metavar="HOST:CONTAINER[:ro]")] = None,
    name: Annotated[str, typer.Option(help="The pod's name, which is its host name, too.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run a pod with one container; in the foreground its exit code is ours, and Ctrl-C stops it."""
    from criw_ctl import pods, spec, tables

    try:
        if detach and remove:
            raise InvalidArgument("cannot remove at the end what is left running: give -d or --rm, not both")
        wish = spec.Wish(
            image=image,
            args=args or [],
            name=spec.parse_name(name) if name else spec.new_name(),
            envs=[spec.parse_env(text) for text in env or []],
            ports=[spec.parse_port(text) for text in publish or []],
            mounts=[spec.parse_mount(text) for text in volume or []],
        )
    except InvalidArgument as err:
        complain(f"{err}; see criwctl run --help")
        raise typer.Exit(WRONG_USAGE) from err
    try:
        if not detach:
            raise typer.Exit(_with_door(context, lambda door: pods.run_attached(door, wish, remove_after=remove)))
        started = _with_door(context, lambda door: pods.run_detached(door, wish))
    except pods.Interrupted:
        complain(f"stopped before {wish.name} was started; nothing of it is left")
        raise typer.Exit(INTERRUPTED) from None
    if output is Output.JSON:
        tables.print_json({"name": wish.name, "podSandboxId": started.pod_id, "containerId": started.container_id})
    else:
        print(f"pod        {started.pod_id}\ncontainer  {started.container_id}")


@app.command("pods")
def list_pods(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the pods, newest first."""
    from criw_ctl import listings, tables

    if output is Output.JSON:
        tables.print_message(_with_door(context, listings.pods))
    else:
        tables.print_table(listings.POD_COLUMNS, _with_door(context, listings.pod_rows))


@app.command()
def ps(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that do not run, too.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the containers that run, newest first."""
    from criw_ctl import listings, tables

    if output is Output.JSON:
        tables.print_message(_with_door(context, lambda door: listings.containers(door, everything=everything)))
    else:
        rows = _with_door(context, lambda door: listings.container_rows(door, everything=everything))
        tables.print_table(listings.CONTAINER_COLUMNS, rows)


@app.command()
def logs(
    context: typer.Context,
    container: ContainerName,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the container ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Begin with the last lines, so many.")] = None,
) -> None:
    """Show what a container wrote, to stdout and stderr as it did."""
    from criw_ctl.door import Door
    from criw_ctl.logs import show_log
    from criw_ctl.names import take_inventory

    async def work(door: Door) -> None:
        found = (await take_inventory(door)).container(container)
        await show_log(door, found.id, following=following, tail=tail)

    _with_door(context, work)


@app.command("exec", context_settings=_PROGRAM)
def execute(
    context: typer.Context,
    container: ContainerName,
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="With its arguments.")],
) -> None:
    """Run a command in a container, without input; show its output when it has ended, and exit with its code."""
    from criw.rpc.client import ask
    from criw_ctl.door import Door
    from criw_ctl.names import take_inventory
    from criw_proto.runtime.v1 import ExecSyncRequest, ExecSyncResponse

    async def work(door: Door) -> ExecSyncResponse:
        found = (await take_inventory(door)).container(container)
        return await ask(
            door.runtime.exec_sync, ExecSyncRequest(container_id=found.id, cmd=list(command)), timeout_s=None
        )

    reply = _with_door(context, work)
    sys.stdout.buffer.write(reply.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(reply.stderr)
    sys.stderr.buffer.flush()
    raise typer.Exit(reply.exit_code)


@app.command()
def stop(context: typer.Context, names: Names) -> None:
    """Stop pods or containers: SIGTERM or the image's own signal, and SIGKILL after 10 seconds."""
    from criw_ctl import pods
    from criw_ctl.door import Door
    from criw_ctl.names import take_inventory

    async def work(door: Door) -> None:
        inventory = await take_inventory(door)
        await _each(names, lambda name: pods.stop(door, inventory, inventory.pod_or_container(name)))

    _with_door(context, work)


@app.command()
def rm(
    context: typer.Context,
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill what runs.")] = False,
) -> None:
    """Remove pods or containers, with the logs that criwctl run made for them."""
    from criw_ctl import pods
    from criw_ctl.door import Door
    from criw_ctl.names import take_inventory

    async def work(door: Door) -> None:
        inventory = await take_inventory(door)
        await _each(names, lambda name: pods.remove(door, inventory, inventory.pod_or_container(name), force=force))

    _with_door(context, work)


@app.command()
def inspect(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="An id, the beginning of one, or a name.")],
) -> None:
    """Show everything about a pod with its containers, a container or an image, as JSON."""
    from criw_ctl import inspection, tables

    tables.print_json(_with_door(context, lambda door: inspection.inspect(door, name)))


@app.command()
def stats(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="CONTAINER", help="Ids or names; all if none.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what containers use, measured over a second."""
    from criw_ctl import stats as usage
    from criw_ctl import tables
    from criw_ctl.door import Door
    from criw_ctl.names import take_inventory
    from criw_proto.runtime.v1 import ListContainerStatsResponse

    async def wanted(door: Door) -> set[str] | None:
        if not names:
            return None
        inventory = await take_inventory(door)
        return {inventory.container(name).id for name in names}

    async def sample(door: Door) -> ListContainerStatsResponse:
        return await usage.sample(door, await wanted(door))

    async def rows(door: Door) -> list[tuple[str, ...]]:
        return await usage.rows(door, await wanted(door))

    if output is Output.JSON:
        tables.print_message(_with_door(context, sample))
    else:
        tables.print_table(usage.COLUMNS, _with_door(context, rows))


@config_app.command()
def check(context: typer.Context) -> None:
    """Check the configuration; exit with 78 if it cannot be used."""
    settings = _settings(context, Config)
    print(f"The configuration is good: root is {settings.root}, run is {settings.run}.")


@config_app.command()
def default() -> None:
    """Print the default configuration, with every key explained."""
    print(default_toml(), end="")
