"""The directory tree that a layer's entries are put into, without ever leaving it.

Whoever made the archive chose every name, link and mode in it. So no path is given to the kernel to follow: parents
are walked one name at a time, a symbolic link among them is followed here, inside the tree, and what is made is made
relative to an open directory, never through an existing link.
"""

from __future__ import annotations

import errno
import os
import stat

from criw_storage.worker import tar
from criw_storage.worker.removal import remove_tree
from criw_storage.worker.stream import Refused, Stream
from criw_storage.worker.tar import Entry

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES = 64
_MAX_LINKS = 40  # symbolic links followed for one path, as in the kernel
_WHITEOUT = b".wh."  # image-spec layer.md, "Whiteouts"
_OPAQUE = b".wh..wh..opq"
_WHITEOUT_META = b".wh..wh."  # what AUFS keeps for itself: says nothing about the image's files
_SPECIAL = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
# Those that belong to the file, not to the host or the overlay: SELinux labels and the like are the host's affair.
_XATTRS = (b"user.", b"security.capability", b"system.posix_acl_")
_SET_ID = stat.S_ISUID | stat.S_ISGID


class Tree:
    """Applies entries below an open directory. Paths are relative to it, "" being itself.

    `implied`: directories that no entry describes. `opaque`: directories that hide what lower layers have in them.
    `whited`: directories with whiteouts in them. `ignored`: extended attributes that were not kept.
    """

    def __init__(self, root: int, *, max_inodes: int) -> None:
        self.implied = {b""}
        self.opaque: set[bytes] = set()
        self.whited: set[bytes] = set()
        self.ignored: set[bytes] = set()
        self._root = root
        self._inodes_left = max_inodes
        self._explicit: dict[bytes, Entry] = {}
        self._open: dict[bytes, tuple[int, bytes]] = {}  # a directory as entries call it: descriptor, real path
        self._stale: list[int] = []

    def apply(self, entry: Entry, stream: Stream) -> None:
        """Make what the entry describes; it replaces what an earlier one made there. Raises Refused, OSError."""
        if self._stale:
            self._close_stale()
        head, _, name = entry.name.strip(b"/").rpartition(b"/")
        if name in {b"", b".", b".."}:
            parts = [part for part in entry.name.split(b"/") if part not in {b"", b"."}]
            if not parts:
                return self._describe_root(entry)
            name = parts.pop()
            head = b"/".join(parts)
            if name == b"..":
                raise Refused(f"entry {entry} leads out of the layer")
        parent, real = self._parent(head, entry)
        if name.startswith(_WHITEOUT):
            return self._white_out(parent, real, name, entry)
        path = real + b"/" + name if real else name
        if entry.kind == tar.FILE:
            self._make_file(parent, path, name, entry, stream)
        elif entry.kind == tar.DIRECTORY:
            self._make_directory(parent, path, name)
            self._explicit[path] = entry
            self.implied.discard(path)
        elif entry.kind == tar.LINK:
            self._make_link(parent, path, name, entry)
        elif entry.kind == tar.SYMLINK:
            self._make_symlink(parent, path, name, entry)
        else:
            self._make_special(parent, path, name, entry)
        return None

    def finish(self) -> None:
        """Give the directories what entries said of them: only now, as what is made in one changes or inherits it."""
        for path, entry in self._explicit.items():
            directory = os.open(path or b".", _DIRECTORY, dir_fd=self._root)
            try:
                os.fchown(directory, entry.uid, entry.gid)
                os.fchmod(directory, entry.mode)
                self._set_xattrs(directory, entry)
                os.utime(directory, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(directory)

    def close(self) -> None:
        self._forget_open()
        self._close_stale()

    def _forget_open(self) -> None:
        self._stale += [descriptor for descriptor, _ in self._open.values()]
        self._open.clear()

    def _close_stale(self) -> None:
        for descriptor in self._stale:
            os.close(descriptor)
        self._stale.clear()

    def _describe_root(self, entry: Entry) -> None:
        if entry.kind != tar.DIRECTORY:
            raise Refused("its root is not a directory")
        self._explicit[b""] = entry
        self.implied.discard(b"")

    def _count(self) -> None:
        self._inodes_left -= 1
        if self._inodes_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Finding a place

    def _parent(self, head: bytes, entry: Entry) -> tuple[int, bytes]:
        """The open directory that entries call `head`, made if need be, and its real path."""
        known = self._open.get(head)
        if known is not None:
            return known
        parts = head.split(b"/")
        if b".." in parts:
            raise Refused(f"entry {entry} leads out of the layer")
        real = self._walk(parts, entry, create=True)
        if len(self._open) >= _OPEN_DIRECTORIES:
            oldest = next(iter(self._open))
            os.close(self._open.pop(oldest)[0])
        self._open[head] = known = (os.open(real or b".", _DIRECTORY, dir_fd=self._root), real)
        return known

    def _walk(self, parts: list[bytes], entry: Entry, *, create: bool) -> bytes:
        """The real path of a directory, following symbolic links as if the tree were the root file system."""
        real = b""
        todo = parts[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":  # from a symbolic link; above the root is the root
                real = real.rpartition(b"/")[0]
                continue
            path = real + b"/" + part if real else part
            mode = self._mode(path)
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise Refused(f"entry {entry} leads through too many symbolic links")
                target = os.readlink(path, dir_fd=self._root)
                if target.startswith(b"/"):
                    real = b""
                todo += target.split(b"/")[::-1]
                continue
            if not stat.S_ISDIR(mode):
                if not create:
                    raise Refused(f"entry {entry} leads through {path!r}, which is not a directory of the layer")
                self._make_directory(self._root, path, path)
                if not mode:  # else it is a new one, whatever lower layers have here
                    self.implied.add(path)
            real = path
        return real

    def _mode(self, path: bytes) -> int:
        """Type and permissions of what is there, 0 for nothing."""
        try:
            return os.lstat(path, dir_fd=self._root).st_mode
        except FileNotFoundError:
            return 0

    # Making things: `name` is relative to the descriptor `parent`, `path` is the same thing's real path

    def _make_directory(self, parent: int, path: bytes, name: bytes) -> None:
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(self._mode(path)):
                return
            self._clear(path)
            os.mkdir(name, 0o755, dir_fd=parent)
            # What it replaces (a whiteout, for one) hid the directory that lower layers may have here.
            self.opaque.add(path)
        os.chown(name, 0, 0, dir_fd=parent, follow_symlinks=False)
        self._count()

    def _make_file(self, parent: int, path: bytes, name: bytes, entry: Entry, stream: Stream) -> None:
        self._count()
        try:
            file = os.open(name, _CREATE, entry.mode, dir_fd=parent)
        except FileExistsError:
            self._clear(path)
            file = os.open(name, _CREATE, entry.mode, dir_fd=parent)
        try:
            if entry.size:
                for piece in stream.pieces(entry.size):
                    _write(file, piece)
            os.fchown(file, entry.uid, entry.gid)  # whatever they are: nobody knows whom the agent runs as
            if entry.mode & _SET_ID:  # chown takes these away, even from root
                os.fchmod(file, entry.mode)
            if entry.xattrs:
                self._set_xattrs(file, entry)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _make_link(self, parent: int, path: bytes, name: bytes, entry: Entry) -> None:
        parts = [part for part in entry.link.split(b"/") if part not in {b"", b"."}]
        if not parts or b".." in parts:
            raise Refused(f"entry {entry} links to {entry.link!r}, which leads out of the layer")
        last = parts.pop()
        real = self._walk(parts, entry, create=False)
        target = real + b"/" + last if real else last
        mode = self._mode(target)
        if not mode or stat.S_ISDIR(mode):
            raise Refused(f"entry {entry} links to {entry.link!r}, which is not a file of the layer")
        if target == path:
            return
        self._clear(path)
        os.link(target, name, src_dir_fd=self._root, dst_dir_fd=parent, follow_symlinks=False)
        if stat.S_ISCHR(mode):  # perhaps a whiteout
            self.whited.add(path.rpartition(b"/")[0])

    def _make_symlink(self, parent: int, path: bytes, name: bytes, entry: Entry) -> None:
        self._count()
        self._clear(path)
        os.symlink(entry.link, name, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _make_special(self, parent: int, path: bytes, name: bytes, entry: Entry) -> None:
        self._count()
        self._clear(path)
        device = os.makedev(entry.major, entry.minor) if entry.kind != tar.FIFO else 0
        os.mknod(name, _SPECIAL[entry.kind] | entry.mode, device, dir_fd=parent)
        if entry.kind == tar.CHARACTER and not device:  # overlayfs's own form of a whiteout
            self.whited.add(path.rpartition(b"/")[0])
            return
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, entry.mode, dir_fd=parent)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _white_out(self, parent: int, real: bytes, name: bytes, entry: Entry) -> None:
        if name == _OPAQUE:
            self.opaque.add(real)
            return
        if name.startswith(_WHITEOUT_META):
            return
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in {b"", b".", b".."}:
            raise Refused(f"entry {entry} removes nothing that can be")
        path = real + b"/" + hidden if real else hidden
        mode = self._mode(path)
        if not mode:
            self._count()
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
            self.whited.add(real)
        elif stat.S_ISDIR(mode):  # of this layer, which the whiteout is not about
            self.opaque.add(path)

    def _clear(self, path: bytes) -> None:
        """Remove what an earlier entry made there, if anything."""
        mode = self._mode(path)
        if stat.S_ISDIR(mode):
            remove_tree(path, dir_fd=self._root)
            below = path + b"/"
            for paths in (self.implied, self.opaque, self.whited):
                paths -= {other for other in paths if other == path or other.startswith(below)}
            for other in [other for other in self._explicit if other == path or other.startswith(below)]:
                del self._explicit[other]
        elif mode:
            os.unlink(path, dir_fd=self._root)
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._forget_open()  # their names may lead through it; the entry being applied still uses one

    def _set_xattrs(self, file: int, entry: Entry) -> None:
        for name, value in entry.xattrs.items():
            if name.startswith(b"trusted.overlay."):
                raise Refused(f"entry {entry} has the attribute {name!r}, which belongs to overlayfs")
            try:
                if not name.startswith(_XATTRS):
                    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
                os.setxattr(file, name, value)
            except OSError as err:
                if err.errno != errno.ENOTSUP:
                    raise
                self.ignored.add(name)


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]
