"""Commands about pods and containers."""

from typing import Annotated

import typer

from criw.errors import InvalidArgument
from criw_ctl.cli import (
    PROGRAM,
    WRONG_USAGE,
    ContainerName,
    Image,
    Names,
    Output,
    OutputOption,
    app,
    complain,
    each,
    with_door,
)


@app.command(context_settings=PROGRAM)
def run(
    context: typer.Context,
    image: Image,
    args: Annotated[list[str] | None, typer.Argument(metavar="CMD", help="Instead of the image's own.")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Print the ids and leave it running.")] = False,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Give it our input.")] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give it a terminal; Ctrl-P Ctrl-Q leaves it.")] = False,
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
    from criw_ctl.interruptions import Interrupted
    from criw_ctl.streams import Detached
    from criw_ctl.terminal import check_input

    try:
        if detach and remove:
            raise InvalidArgument("cannot remove at the end what is left running: give -d or --rm, not both")
        joined = (interactive or tty) and not detach
        wish = spec.Wish(
            image=image,
            args=args or [],
            name=spec.parse_name(name) if name else spec.new_name(),
            envs=[spec.parse_env(text) for text in env or []],
            ports=[spec.parse_port(text) for text in publish or []],
            mounts=[spec.parse_mount(text) for text in volume or []],
            stdin=interactive,
            tty=tty,
            joined=joined,
        )
    except InvalidArgument as err:
        complain(f"{err}; see criwctl run --help")
        raise typer.Exit(WRONG_USAGE) from err
    if joined and interactive and tty:
        check_input(0, instead="give -i without -t for input from a pipe or a file")
    in_front = pods.run_joined if joined else pods.run_attached
    try:
        if not detach:
            raise typer.Exit(with_door(context, lambda door: in_front(door, wish, remove_after=remove)))
        started = with_door(context, lambda door: pods.run_detached(door, wish))
    except Interrupted as err:
        complain(f"stopped before {wish.name} was started; nothing of it is left")
        raise typer.Exit(err.exit_code) from None
    except Detached:
        complain(f"detached from {wish.name}, which runs on; criwctl attach {wish.name} joins it again")
        return
    if output is Output.JSON:
        tables.print_json({"name": wish.name, "podSandboxId": started.pod_id, "containerId": started.container_id})
    else:
        print(f"pod        {started.pod_id}\ncontainer  {started.container_id}")


@app.command("pods")
def list_pods(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the pods, newest first."""
    from criw_ctl import listings, tables

    if output is Output.JSON:
        tables.print_message(with_door(context, listings.pods))
    else:
        tables.print_table(listings.POD_COLUMNS, with_door(context, listings.pod_rows))


@app.command()
def ps(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that do not run, too.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the containers that run, newest first."""
    from criw_ctl import listings, tables

    if output is Output.JSON:
        tables.print_message(with_door(context, lambda door: listings.containers(door, everything=everything)))
    else:
        rows = with_door(context, lambda door: listings.container_rows(door, everything=everything))
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

    with_door(context, work)


@app.command()
def stop(context: typer.Context, names: Names) -> None:
    """Stop pods or containers: SIGTERM or the image's own signal, and SIGKILL after 10 seconds."""
    from criw_ctl import pods
    from criw_ctl.door import Door
    from criw_ctl.names import take_inventory

    async def work(door: Door) -> None:
        inventory = await take_inventory(door)
        await each(names, lambda name: pods.stop(door, inventory, inventory.pod_or_container(name)))

    with_door(context, work)


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
        await each(names, lambda name: pods.remove(door, inventory, inventory.pod_or_container(name), force=force))

    with_door(context, work)


@app.command()
def inspect(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="An id, the beginning of one, or a name.")],
) -> None:
    """Show everything about a pod with its containers, a container or an image, as JSON."""
    from criw_ctl import inspection, tables

    tables.print_json(with_door(context, lambda door: inspection.inspect(door, name)))


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
        tables.print_message(with_door(context, sample))
    else:
        tables.print_table(usage.COLUMNS, with_door(context, rows))
