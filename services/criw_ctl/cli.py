"""What every command stands on: the options, the configuration, the door, and how a failure is told.

The commands are in `criw_ctl.commands`.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from criw.config.common import Common
from criw.config.load import DEFAULT_PATH, load
from criw.errors import Fault, InvalidArgument

if TYPE_CHECKING:
    from criw_ctl.door import Door

T = TypeVar("T")
C = TypeVar("C", bound=Common)
WRONG_USAGE: Final = 2

app = typer.Typer(
    help="Criw, a Kubernetes container runtime: the crew on this host, its pods, containers and images.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="The configuration file.")
app.add_typer(config_app, name="config")

PROGRAM: Final = {"allow_interspersed_args": False}  # what follows an image or a container belongs to its program


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


def settings_of(context: typer.Context, model: type[C]) -> C:
    try:
        return load(model, context.obj)
    except InvalidArgument as err:
        complain(str(err))
        raise typer.Exit(os.EX_CONFIG) from err


def with_door(context: typer.Context, work: Callable[["Door"], Awaitable[T]]) -> T:
    from criw_ctl.door import open_door

    settings = settings_of(context, Common)

    async def main() -> T:
        async with open_door(settings) as door:
            return await work(door)

    return asyncio.run(main())


async def each(names: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
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
