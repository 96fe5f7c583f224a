import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_supervisor.oci.tree import Tree


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_text("")
    for name, target in {
        "absolute": "/dir", "relative": "dir/../dir", "out": "../../../etc", "chain": "absolute/x", "self": "self",
        "dir/up": "..", "missing": "/not/there", "through": "out/deeper",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/absolute/x", "/dir/x"),
        ("/relative", "/dir"),
        ("/out/passwd", "/etc/passwd"),
        ("/through", "/etc/deeper"),
        ("/chain/y", "/dir/x/y"),
        ("/dir/up/dir/up/absolute", "/dir"),
        ("/missing/x", "/not/there/x"),
        ("/../../x", "/x"),
        ("/no/such/../x", "/no/x"),
        ("/file/x", "/file/x"),
        ("dir//./x/", "/dir/x"),
    ],
)
def test_links_are_followed_inside_the_root(rootfs: Path, path: str, expected: str) -> None:
    assert Tree(rootfs).resolve(path) == expected


@pytest.mark.parametrize(
    ("path", "words"), [("/self", "too many links"), ("/a\0b", "a NUL"), ("/" + "x" * 300, "long")]
)
def test_a_path_that_leads_nowhere_is_refused(rootfs: Path, path: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Tree(rootfs).resolve(path)


def test_what_is_mounted_hides_the_images_links(rootfs: Path, tmp_path: Path) -> None:
    tree = Tree(rootfs)
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/link").symlink_to("/absolute")
    tree.mount("/absolute", None)
    tree.mount("/dir", tmp_path / "volume")
    assert tree.resolve("/absolute/x") == "/absolute/x"
    assert tree.on_host("/absolute/x") is None
    assert tree.resolve("/dir/link/x") == "/absolute/x"
    assert tree.on_host("/dir/link") == tmp_path / "volume/link"
    assert (tree.mount_point("/dir/a/b"), tree.mount_point("/directory")) == ("/dir", "/")


@given(
    links=st.dictionaries(st.sampled_from("abcd"), st.text("abcd./", min_size=1), max_size=4), path=st.text("abcd./")
)
def test_no_path_has_a_link_or_a_way_out_in_it(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], path: str
) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, target in links.items():
        (root / name).symlink_to(target)
    try:
        found = Tree(root).resolve(path)
    except InvalidArgument:
        return
    assert found == os.path.normpath(found)
    assert found.startswith("/")
    where = root
    for part in found.split("/")[1:]:
        assert part != ".."
        where /= part
        assert not where.is_symlink()
