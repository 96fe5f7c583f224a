"""The directories and symbolic links of a layer that is being unpacked, as they are in memory."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criw_storage.worker.tar import Entry


class Directory:
    """One directory. `children` has the directories in it and, by their targets, the symbolic links; None for none.

    `entry` is what described it, `implied` is true if none did. `opaque`: it hides what lower layers have in it.
    `whited`: there are whiteouts in it. `length` is that of its path, in bytes.
    """

    __slots__ = ("above", "children", "entry", "implied", "length", "name", "opaque", "whited")

    def __init__(self, above: Directory | None, name: bytes) -> None:
        self.above = above
        self.name = name
        self.length: int = above.length + len(name) + 1 if above is not None else -1
        self.children: dict[bytes, Directory | bytes] | None = None
        self.entry: Entry | None = None
        self.implied = self.opaque = self.whited = False

    def get(self, name: bytes) -> Directory | bytes | None:
        """The directory, or the symbolic link's target, by that name in it."""
        return self.children.get(name) if self.children else None

    def put(self, name: bytes, found: Directory | bytes) -> None:
        """Know what is there by that name now."""
        if self.children is None:
            self.children = {}
        self.children[name] = found

    def path(self) -> bytes:
        """Relative to the root, which is ""."""
        parts = []
        here: Directory | None = self
        while here is not None and here.above is not None:
            parts.append(here.name)
            here = here.above
        return b"/".join(reversed(parts))

    def all(self) -> Iterator[tuple[bytes, Directory]]:
        """It and all directories below it, by path, each after the one it is in."""
        yield b"", self
        levels = [(b"", iter((self.children or {}).items()))]
        while levels:
            path, children = levels[-1]
            for name, below in children:
                if isinstance(below, Directory):
                    here = path + name
                    yield here, below
                    levels.append((here + b"/", iter((below.children or {}).items())))
                    break
            else:
                levels.pop()
