"""Who a container's process is: users and groups by number, or by name from the image's own files."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import InvalidArgument
from criw.kernel import open_in_root, suppress_errno

_FILE_LIMIT: Final = 4 * 1024 * 1024
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)  # the last: a FIFO's or socket's other end
_IDS: Final = range(2**32 - 1)  # the highest means "none": setuid(2)
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}")


@dataclass(frozen=True)
class Asked:
    """Who a request wants the process to be."""

    uid: int | None = None
    username: str = ""
    gid: int | None = None
    groups: tuple[int, ...] = ()  # supplementary ones
    merge_image_groups: bool = True  # whether those the image gives the user count too


@dataclass(frozen=True)
class User:
    """Numbers as they are inside the container; `groups` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...]  # the primary one among them: a set-gid program must not be a way to be rid of it
    home: str


@dataclass(frozen=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def resolve_user(rootfs: Path, asked: Asked, *, image_user: str) -> User:
    """The user of a container. Files of the image are read inside `rootfs`: no link leads out of it.

    A number is a number, also where the image has an account of that name: whoever asked for it, or checked that it is
    not 0, must get it. Raises InvalidArgument for a name the image does not know, for a number that is no id, and for a
    group without a user (CRI v1).
    """
    if asked.gid is not None and asked.uid is None and not asked.username:
        raise InvalidArgument("cannot run the container: run_as_group is set without run_as_user or run_as_username")
    group_text = ""
    if asked.uid is not None:
        user_text = str(asked.uid)
    elif asked.username:
        user_text = asked.username
    else:
        user_text, _, group_text = image_user.partition(":")
    accounts = list(_accounts(rootfs))
    account = _find_account(accounts, user_text or "0")
    groups = list(_groups(rootfs))
    if asked.gid is not None:
        gid = _id(asked.gid)
    elif group_text:
        gid = _find_group(groups, group_text)
    else:
        gid = account.gid
    extra = {gid, *(_id(group) for group in asked.groups)}
    if asked.merge_image_groups and account.name:
        extra |= {number for _, number, members in groups if account.name in members}
    return User(account.uid, gid, tuple(sorted(extra)), account.home)


def _find_account(accounts: list[_Account], user: str) -> _Account:
    if _NUMBER.fullmatch(user):
        number = _id(int(user))
        return next((one for one in accounts if one.uid == number), _Account("", number, 0, "/"))
    for account in accounts:
        if account.name == user:
            return account
    raise InvalidArgument(f"cannot run the container: the image has no user {user} in /etc/passwd")


def _find_group(groups: list[tuple[str, int, frozenset[str]]], group: str) -> int:
    if _NUMBER.fullmatch(group):
        return _id(int(group))
    for name, number, _ in groups:
        if name == group:
            return number
    raise InvalidArgument(f"cannot run the container: the image has no group {group} in /etc/group")


def _id(number: int) -> int:
    if number not in _IDS:
        raise InvalidArgument(f"cannot run the container: {number} is no user or group id")
    return number


def _is_id(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and int(text) in _IDS


def _accounts(rootfs: Path) -> Iterator[_Account]:
    for fields in _lines(rootfs, "etc/passwd"):
        if len(fields) >= 6 and _is_id(fields[2]) and _is_id(fields[3]):
            yield _Account(fields[0], int(fields[2]), int(fields[3]), fields[5] or "/")


def _groups(rootfs: Path) -> Iterator[tuple[str, int, frozenset[str]]]:
    for fields in _lines(rootfs, "etc/group"):
        if len(fields) >= 3 and _is_id(fields[2]):
            yield fields[0], int(fields[2]), frozenset(fields[3].split(",") if len(fields) > 3 else ())


def _lines(rootfs: Path, name: str) -> Iterator[list[str]]:
    """The colon-separated lines of a file of the image; none if it is not there or no plain file."""
    data = b""
    with suppress_errno(*_ABSENT):
        fd = open_in_root(rootfs, name)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                data = os.read(fd, _FILE_LIMIT)
        finally:
            os.close(fd)
    for line in data.decode(errors="replace").split("\n"):
        if line and not line.startswith(("#", "+", "-")):
            yield line.split(":")
