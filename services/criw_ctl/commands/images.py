"""Commands about images."""

import asyncio
from typing import Annotated

import typer

from criw.config.common import Common
from criw_ctl.cli import (
    Image,
    Output,
    OutputOption,
    app,
    each,
    settings_of,
    with_door,
)


@app.command()
def pull(context: typer.Context, image: Image, output: OutputOption = Output.TABLE) -> None:
    """Pull an image, with a bar for each layer."""
    from criw_ctl import images, tables

    image_id = asyncio.run(images.pull(settings_of(context, Common), image))
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

    reply = with_door(context, lambda door: ask(door.images.list_images, ListImagesRequest()))
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

    with_door(context, lambda door: each(names, lambda name: images.remove(door, name)))
