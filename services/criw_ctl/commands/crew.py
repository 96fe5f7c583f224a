"""Commands about the crew and its configuration."""

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path

import typer

from criw.config.crew import Config, CrewFacts
from criw.config.document import default_toml
from criw.errors import Fault
from criw_ctl.cli import (
    Output,
    OutputOption,
    app,
    complain,
    config_app,
    settings_of,
)


def _program() -> str:
    """How to call criwctl again."""
    called = Path(sys.argv[0])
    return "criwctl" if shutil.which("criwctl") or called.name != "criwctl" else str(called)


@app.command()
def up(context: typer.Context) -> None:
    """Start the crew on this host and watch over it until Ctrl-C; containers go on without it."""
    from criw import log
    from criw_ctl.crew import run_crew

    settings = settings_of(context, Config)
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

    crew = asyncio.run(take_status(settings_of(context, CrewFacts)))
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


@config_app.command()
def check(context: typer.Context) -> None:
    """Check the configuration; exit with 78 if it cannot be used."""
    settings = settings_of(context, Config)
    print(f"The configuration is good: root is {settings.root}, run is {settings.run}.")


@config_app.command()
def default() -> None:
    """Print the default configuration, with every key explained."""
    print(default_toml(), end="")
