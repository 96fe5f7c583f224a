"""The directory tree that a layer's entries are put into, without ever leaving it.

Whoever made the archive chose every name, link and mode in it. So no path with a link in it is given to the kernel: all
directories and symbolic links that were made are known here (`Directory`), parents are looked up among them, and what
is made is made relative to an open directory, never through an existing link. Looking up costs memory and no system
call, and what an entry costs does not depend on how many there were before it.
"""

from __future__ import annotations

import errno
import os
import stat

from criw_storage.worker import tar
from criw_storage.worker.directory import Directory
from criw_storage.worker.names import OPAQUE, PSEUDO_LINKED, WHITEOUT, cleaned, for_aufs_only
from criw_storage.worker.removal import remove_tree
from criw_storage.worker.stream import Refused, Stream
from criw_storage.worker.tar import Entry
from criw_storage.worker.xattrs import set_xattrs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES = 64
_MAX_LINKS = 40  # symbolic links followed for one path, as in the kernel
_MAX_LINK_STEPS = 5_000_000  # names looked up to follow links, all together: some seconds
_PATH_MAX = 4095  # bytes, as in the kernel: what lies deeper no program could name
_SPECIAL = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
_SET_ID = stat.S_ISUID | stat.S_ISGID


class Tree:
    """Applies entries below an open directory.

    `take_room` is told of each inode (0) and of the bytes of each write; it raises OSError (ENOSPC). `top`: what was
    made. `ignored`: extended attributes that were not kept.
    """

    def __init__(self, root: int, *, max_inodes: int, take_room: Callable[[int], None] = lambda _: None) -> None:
        self.top = Directory(None, b"")
        self.top.implied = True
        self.ignored: set[bytes] = set()
        self._root = root
        self._inodes_left = max_inodes
        self._take_room = take_room
        self._link_steps = 0
        self._known: dict[bytes, Directory] = {}  # by what entries call them; no more than are open
        self._open: dict[Directory, int] = {}  # oldest first
        self._stale: list[int] = []

    def apply(self, entry: Entry, stream: Stream) -> None:
        """Make what the entry describes; it replaces what an earlier one made there. Raises Refused, OSError."""
        if self._stale:
            self._close_stale()
        head, _, name = entry.name.strip(b"/").rpartition(b"/")
        if name in {b"", b".", b".."}:
            parts = cleaned(entry.name, entry)
            if not parts:
                return self._describe_root(entry)
            name = parts.pop()
            head = b"/".join(parts)
        if WHITEOUT in entry.name and for_aufs_only(head, name, entry):
            return None
        above = self._known.get(head) or self._parent(head, entry)
        parent = self._opened(above)
        if entry.kind == tar.FILE and not name.startswith(WHITEOUT):  # most are
            self._make_file(above, parent, name, entry, stream)
        elif name.startswith(WHITEOUT):
            self._white_out(above, parent, name, entry)
        elif entry.kind == tar.DIRECTORY:
            made = self._make_directory(above, parent, name)
            made.entry, made.implied = entry, False
        elif entry.kind == tar.LINK:
            self._make_link(above, parent, name, entry)
        elif entry.kind == tar.SYMLINK:
            self._make_symlink(above, parent, name, entry)
        else:
            self._make_special(above, parent, name, entry)
        return None

    def finish(self) -> None:
        """Give the directories what entries said of them: only now, as what is made in one changes or inherits it."""
        if isinstance(self.top.get(PSEUDO_LINKED), Directory):
            self._clear(self.top, self._root, PSEUDO_LINKED)
        for _, found in self.top.all():
            if (entry := found.entry) is None:
                continue
            directory = self._opened(found)
            os.fchown(directory, entry.uid, entry.gid)
            os.fchmod(directory, entry.mode)
            self.ignored |= set_xattrs(directory, entry)
            os.utime(directory, ns=(entry.mtime_ns, entry.mtime_ns))
            self._close_stale()

    def close(self) -> None:
        """Close all that was opened."""
        self._forget_open()
        self._close_stale()

    def _forget_open(self) -> None:
        self._stale += self._open.values()
        self._open.clear()
        self._known.clear()

    def _close_stale(self) -> None:
        for descriptor in self._stale:
            os.close(descriptor)
        self._stale.clear()

    def _describe_root(self, entry: Entry) -> None:
        if entry.kind != tar.DIRECTORY:
            raise Refused("its root is not a directory")
        self.top.entry, self.top.implied = entry, False

    def _count(self) -> None:
        self._inodes_left -= 1
        if self._inodes_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._take_room(0)

    # Finding a place

    def _parent(self, head: bytes, entry: Entry) -> Directory:
        """The directory that entries call `head`, made if need be."""
        found = self._walk(cleaned(head, entry), entry, create=True)
        self._opened(found)
        if len(self._known) >= _OPEN_DIRECTORIES:
            del self._known[next(iter(self._known))]
        self._known[head] = found
        return found

    def _opened(self, directory: Directory) -> int:
        """A descriptor of it, good until the next entry."""
        descriptor = self._open.get(directory)
        if descriptor is None:
            if len(self._open) >= _OPEN_DIRECTORIES:
                self._stale.append(self._open.pop(next(iter(self._open))))
            above = self._open.get(directory.above) if directory.above else None
            path = directory.name if above is not None else directory.path() or b"."
            descriptor = os.open(path, _DIRECTORY, dir_fd=self._root if above is None else above)
            self._open[directory] = descriptor
        return descriptor

    def _walk(self, parts: list[bytes], entry: Entry, *, create: bool) -> Directory:
        """A directory, following symbolic links as if the tree were the root file system."""
        here = self.top
        todo = parts[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":  # from a symbolic link; above the root is the root
                here = here.above or here
                continue
            found = here.get(part)
            if isinstance(found, bytes):
                links += 1
                if links > _MAX_LINKS:
                    raise Refused(f"entry {entry} leads through too many symbolic links")
                target = found.split(b"/")
                self._link_steps += len(target)
                if self._link_steps > _MAX_LINK_STEPS:
                    raise Refused("its symbolic links lead through too many directories")
                if found.startswith(b"/"):
                    here = self.top
                todo += target[::-1]
                continue
            if found is None:
                if not create:
                    raise Refused(f"entry {entry} leads through {part!r}, which is not a directory of the layer")
                found = self._make_directory(here, self._opened(here), part, listed=False)
                self._close_stale()  # a path may be of more directories than may be open
            here = found
        return here

    # Making things: `name` is in the directory `above`, which is open as `parent`

    def _make_directory(self, above: Directory, parent: int, name: bytes, *, listed: bool = True) -> Directory:
        """A directory, new or there already. One that no entry lists and that replaces nothing is an implied one."""
        found = above.get(name)
        if isinstance(found, Directory):
            return found
        made = Directory(above, name)
        if made.length > _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            made.implied = not listed
        except FileExistsError:
            self._clear(above, parent, name)
            os.mkdir(name, 0o755, dir_fd=parent)
            # What it replaces (a whiteout, for one) hid the directory that lower layers may have here.
            made.opaque = True
        os.chown(name, 0, 0, dir_fd=parent, follow_symlinks=False)
        above.put(name, made)
        self._count()
        return made

    def _make_file(self, above: Directory, parent: int, name: bytes, entry: Entry, stream: Stream) -> None:
        self._count()
        try:
            file = os.open(name, _CREATE, entry.mode, dir_fd=parent)
        except FileExistsError:
            self._clear(above, parent, name)
            file = os.open(name, _CREATE, entry.mode, dir_fd=parent)
        try:
            if entry.size:
                for piece in stream.pieces(entry.size):
                    self._take_room(len(piece))
                    while piece:
                        piece = piece[os.write(file, piece) :]
            os.fchown(file, entry.uid, entry.gid)  # whatever they are: nobody knows whom the agent runs as
            if entry.mode & _SET_ID:  # chown takes these away, even from root
                os.fchmod(file, entry.mode)
            if entry.xattrs:
                self.ignored |= set_xattrs(file, entry)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _make_link(self, above: Directory, parent: int, name: bytes, entry: Entry) -> None:
        parts = cleaned(entry.link, entry)
        nothing = f"entry {entry} links to {entry.link!r}, which is not a file of the layer"
        if not parts:
            raise Refused(nothing)
        last = parts.pop()
        beside = self._walk(parts, entry, create=False)
        source = self._opened(beside)
        mode = _mode(source, last)
        if not mode or stat.S_ISDIR(mode):
            raise Refused(nothing)
        if (beside, last) == (above, name):
            return
        target = beside.get(last)
        self._clear(above, parent, name)
        os.link(last, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        if isinstance(target, bytes):
            above.put(name, target)
        elif stat.S_ISCHR(mode):  # perhaps a whiteout
            above.whited = True

    def _make_symlink(self, above: Directory, parent: int, name: bytes, entry: Entry) -> None:
        self._count()
        self._clear(above, parent, name)
        os.symlink(entry.link, name, dir_fd=parent)
        above.put(name, entry.link)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _make_special(self, above: Directory, parent: int, name: bytes, entry: Entry) -> None:
        self._count()
        self._clear(above, parent, name)
        device = os.makedev(entry.major, entry.minor) if entry.kind != tar.FIFO else 0
        os.mknod(name, _SPECIAL[entry.kind] | entry.mode, device, dir_fd=parent)
        if entry.kind == tar.CHARACTER and not device:  # overlayfs's own form of a whiteout
            above.whited = True
            return
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, entry.mode, dir_fd=parent)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _white_out(self, above: Directory, parent: int, name: bytes, entry: Entry) -> None:
        if name == OPAQUE:
            above.opaque = True
            return
        hidden = name.removeprefix(WHITEOUT)
        if hidden in {b"", b".", b".."}:
            raise Refused(f"entry {entry} removes nothing that can be")
        found = above.get(hidden)
        if isinstance(found, Directory):  # of this layer, which the whiteout is not about
            found.opaque = True
        elif not _mode(parent, hidden):
            self._count()
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
            above.whited = True

    def _clear(self, above: Directory, parent: int, name: bytes) -> None:
        """Remove what an earlier entry made there, if anything."""
        known = above.children.pop(name, None) if above.children else None
        if isinstance(known, Directory):
            remove_tree(name, dir_fd=parent)
        elif _mode(parent, name):
            os.unlink(name, dir_fd=parent)
        if known is not None:
            self._forget_open()  # their names may lead through it; the entry being applied still uses one


def _mode(parent: int, name: bytes) -> int:
    """Type and permissions of what is there, 0 for nothing."""
    try:
        return os.lstat(name, dir_fd=parent).st_mode
    except FileNotFoundError:
        return 0
