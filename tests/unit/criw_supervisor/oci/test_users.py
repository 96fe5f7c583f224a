import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_supervisor.oci.users import Asked, User, _accounts, _groups, resolve_user

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment
+nis
broken line
app:x:1000:1001:An App:/home/app:/bin/sh
1000:x:0:0:named like the app's number:/evil:/bin/sh
web:x:33:33::/var/www
huge:x:4294967296:0::/:
"""
GROUP = """\
root:x:0:
app:x:1001:
extra:x:2000:web,app
wheel:x:10:root,app
2000:x:0:
short
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


def resolve(
    rootfs: Path, *, image: str = "", uid: int | None = None, name: str = "", gid: int | None = None,
    groups: tuple[int, ...] = (), merge: bool = True,
) -> User:  # fmt: skip
    asked = Asked(uid=uid, username=name, gid=gid, groups=groups, merge_image_groups=merge)
    return resolve_user(rootfs, asked, image_user=image)


def test_nothing_said_means_root(rootfs: Path) -> None:
    assert resolve(rootfs) == User(0, 0, (0, 10), "/root")


@pytest.mark.parametrize(
    ("image", "user"),
    [
        ("app", User(1000, 1001, (10, 1001, 2000), "/home/app")),
        ("1000", User(1000, 1001, (10, 1001, 2000), "/home/app")),
        ("web", User(33, 33, (33, 2000), "/var/www")),
        ("app:extra", User(1000, 2000, (10, 2000), "/home/app")),
        ("app:77", User(1000, 77, (10, 77, 2000), "/home/app")),
        ("7:8", User(7, 8, (8,), "/")),
        ("7", User(7, 0, (0,), "/")),
        (":extra", User(0, 2000, (10, 2000), "/root")),
    ],
)
def test_the_images_user(rootfs: Path, image: str, user: User) -> None:
    assert resolve(rootfs, image=image) == user


def test_a_number_is_never_taken_for_the_name_of_an_account(rootfs: Path) -> None:
    # The kubelet has checked that 1000 is not root; an image must not make it so.
    assert resolve(rootfs, uid=1000).uid == 1000
    assert resolve(rootfs, image="1000").uid == 1000
    assert resolve(rootfs, image="7:2000").gid == 2000


def test_the_request_wins_over_the_image(rootfs: Path) -> None:
    assert resolve(rootfs, image="web", uid=1000).uid == 1000
    assert resolve(rootfs, image="web", name="app") == User(1000, 1001, (10, 1001, 2000), "/home/app")
    assert resolve(rootfs, image="web", uid=0).uid == 0
    assert resolve(rootfs, image="web:extra", uid=1000, gid=5).gid == 5
    assert resolve(rootfs, image="web:extra", uid=4000).gid == 0  # the image's group belongs to the image's user


def test_the_primary_group_cannot_be_shed_through_a_set_gid_program(rootfs: Path) -> None:
    assert resolve(rootfs, uid=4000, gid=77).groups == (77,)  # files may give the group fewer rights than others


def test_supplemental_groups_are_merged_with_the_images_or_alone(rootfs: Path) -> None:
    assert resolve(rootfs, uid=1000, groups=(5000, 5001)).groups == (10, 1001, 2000, 5000, 5001)
    assert resolve(rootfs, uid=1000, groups=(5000,), merge=False).groups == (1001, 5000)
    assert resolve(rootfs, uid=1000, merge=False).groups == (1001,)


def test_a_group_without_a_user_is_refused(rootfs: Path) -> None:
    with pytest.raises(InvalidArgument, match="run_as_group is set without run_as_user"):
        resolve(rootfs, image="app", gid=5)


@pytest.mark.parametrize("name", ["nobody-here", "huge", "nis", "+nis"])
def test_a_name_the_image_does_not_know_is_refused(rootfs: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"no user .*{name.strip('+')}"):
        resolve(rootfs, name=name)
    with pytest.raises(InvalidArgument, match="no group no-such-group"):
        resolve(rootfs, image="app:no-such-group")


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, 2**63 - 1])
def test_a_number_that_is_no_id_is_refused(rootfs: Path, number: int) -> None:
    # A runtime that cuts it to 32 bits would make some of them root.
    asking: list[Callable[[], User]] = [
        lambda: resolve(rootfs, uid=number),
        lambda: resolve(rootfs, uid=1, gid=number),
        lambda: resolve(rootfs, groups=(number,)),
        lambda: resolve(rootfs, image=str(number)),
        lambda: resolve(rootfs, image=f"1:{number}"),
    ]
    for ask in asking:
        with pytest.raises(InvalidArgument, match=f"{number} is no user or group id"):
            ask()


def test_an_image_without_accounts_has_numbers_only(tmp_path: Path) -> None:
    assert resolve(tmp_path) == User(0, 0, (0,), "/")
    assert resolve(tmp_path, image="5:6") == User(5, 6, (6,), "/")
    with pytest.raises(InvalidArgument, match="no user app"):
        resolve(tmp_path, image="app")


def test_no_link_of_the_image_leads_out_of_it(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("outside:x:666:666::/:\n")
    for target in (tmp_path / "passwd", "../../passwd", "/../../../../../../../../../../../../passwd"):
        (rootfs / "etc/passwd").unlink()
        (rootfs / "etc/passwd").symlink_to(target)
        with pytest.raises(InvalidArgument, match="no user outside"):
            resolve(rootfs, name="outside")


def test_links_inside_the_image_are_followed_as_the_image_means_them(rootfs: Path) -> None:
    (rootfs / "usr/share").mkdir(parents=True)
    (rootfs / "etc/passwd").rename(rootfs / "usr/share/passwd")
    (rootfs / "etc/passwd").symlink_to("/usr/share/passwd")
    assert resolve(rootfs, name="app").uid == 1000


def test_a_linked_etc_does_not_lead_out_either(rootfs: Path) -> None:
    (rootfs / "etc").rename(rootfs / "away")
    (rootfs / "etc").symlink_to("/etc")  # itself, seen from inside
    assert resolve(rootfs) == User(0, 0, (0,), "/")


def test_what_is_no_plain_file_is_as_good_as_none(rootfs: Path) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    (rootfs / "etc/group").unlink()
    (rootfs / "etc/group").mkdir()
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    assert resolve(rootfs) == User(0, 0, (0,), "/")
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_as_accounts_or_passed_over(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.mktemp("rootfs")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_bytes(data)
    (root / "etc/group").write_bytes(data)
    for account in _accounts(root):
        assert 0 <= account.uid < 2**32 - 1
    for _, number, _ in _groups(root):
        assert 0 <= number < 2**32 - 1


names = st.text(st.characters(exclude_characters=":\n", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: not name.startswith(("#", "+", "-")) and not name.lstrip("-").isdecimal()
)


@given(st.dictionaries(names, st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2)), min_size=1))
def test_every_account_is_found_by_its_name(
    tmp_path_factory: pytest.TempPathFactory, accounts: dict[str, tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("rootfs")
    (root / "etc").mkdir()
    lines = [f"{name}:x:{uid}:{gid}:a comment:/home/of:/bin/sh\n" for name, (uid, gid) in accounts.items()]
    (root / "etc/passwd").write_text("".join(lines), newline="\n")
    for name, (uid, gid) in accounts.items():
        assert resolve(root, name=name) == User(uid, gid, (gid,), "/home/of")
