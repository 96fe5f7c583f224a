"""Who a container's process is: users and groups by number, or by name from the image's own files."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import InvalidArgument
from criw.kernel import open_in_root

_FILE_LIMIT: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class User:
    """Numbers as they are inside the container; `groups` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def resolve_user(
    rootfs: Path,
    *,
    image_user: str,
    run_as_user: int | None,
    run_as_username: str,
    run_as_group: int | None,
    supplemental_groups: tuple[int, ...],
    merge_image_groups: bool,
) -> User:
    """The user of a container. Files of the image are read inside `rootfs`: no link leads out of it.

    Raises InvalidArgument for a name the image does not know, and for a group without a user (CRI v1).
    """
    if run_as_group is not None and run_as_user is None and not run_as_username:
        raise InvalidArgument("cannot run the container: run_as_group is set without run_as_user or run_as_username")
    group_text = ""
    if run_as_user is not None:
        user_text = str(run_as_user)
    elif run_as_username:
        user_text = run_as_username
    else:
        user_text, _, group_text = image_user.partition(":")
    accounts = list(_accounts(rootfs))
    account = _find_account(accounts, user_text or "0")
    groups = list(_groups(rootfs))
    if run_as_group is not None:
        gid = run_as_group
    elif group_text:
        gid = _find_group(groups, group_text)
    else:
        gid = account.gid
    extra = set(supplemental_groups)
    if merge_image_groups and account.name:
        extra |= {number for _, number, members in groups if account.name in members}
    return User(account.uid, gid, tuple(sorted(extra | ({gid} if extra else set()))), account.home)


def _find_account(accounts: list[_Account], user: str) -> _Account:
    number = int(user) if user.isdecimal() else None
    for account in accounts:
        if account.name == user or account.uid == number:
            return account
    if number is None:
        raise InvalidArgument(f"cannot run the container: the image has no user {user} in /etc/passwd")
    return _Account("", number, 0, "/")


def _find_group(groups: list[tuple[str, int, frozenset[str]]], group: str) -> int:
    for name, number, _ in groups:
        if name == group:
            return number
    if group.isdecimal():
        return int(group)
    raise InvalidArgument(f"cannot run the container: the image has no group {group} in /etc/group")


def _accounts(rootfs: Path) -> Iterator[_Account]:
    for fields in _lines(rootfs, "etc/passwd"):
        if len(fields) >= 6 and fields[2].isdecimal() and fields[3].isdecimal():
            yield _Account(fields[0], int(fields[2]), int(fields[3]), fields[5] or "/")


def _groups(rootfs: Path) -> Iterator[tuple[str, int, frozenset[str]]]:
    for fields in _lines(rootfs, "etc/group"):
        if len(fields) >= 3 and fields[2].isdecimal():
            yield fields[0], int(fields[2]), frozenset(fields[3].split(",") if len(fields) > 3 else ())


def _lines(rootfs: Path, name: str) -> Iterator[list[str]]:
    """The colon-separated lines of a file of the image; none if it is not there or no plain file."""
    try:
        fd = open_in_root(rootfs, name)
    except (FileNotFoundError, NotADirectoryError):
        return
    with os.fdopen(fd, "rb") as file:
        data = file.read(_FILE_LIMIT)
    for line in data.decode(errors="replace").splitlines():
        if line and not line.startswith(("#", "+", "-")):
            yield line.split(":")
