"""How answers are shown: tables for people, JSON for programs."""

import json
import sys
import time
from collections.abc import Sequence

import betterproto2
from rich.console import Console
from rich.table import Table

SHORT_ID = 13
_PIPE_WIDTH = 10_000


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A line per row; cut to the terminal's width, whole where it goes to a file or a program."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def print_message(message: betterproto2.Message) -> None:
    """The message as protobuf defines its JSON, every field present."""
    print_json(message.to_dict(include_default_values=True))


def short(object_id: str) -> str:
    """An id cut to what tells it from others."""
    return object_id.removeprefix("sha256:")[:SHORT_ID]


def age(created_ns: int) -> str:
    """How long ago a time in nanoseconds since the epoch was."""
    seconds = max(0, int(time.time() - created_ns / 1e9))
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return f"{seconds} s ago"


def size(count: int) -> str:
    """Bytes for people, in decimal units."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 999.95:  # what rounds to less than 1000.0
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"
