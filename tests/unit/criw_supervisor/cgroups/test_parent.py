import pytest

from criw.errors import InvalidArgument
from criw_supervisor.cgroups.parent import check_parent


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1"),
        ("kubepods//pod1/", "/kubepods/pod1"),
        ("/a.slice/b", "/a.slice/b"),
        ("/..a", "/..a"),
    ],
)
def test_a_parent_is_made_absolute(asked: str, path: str) -> None:
    assert check_parent(asked) == path


@pytest.mark.parametrize("asked", ["/a\nb", "/a\x7f", f"/{'n' * 256}", "/pod" * 600])
def test_a_parent_the_kernel_would_not_make_is_refused(asked: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot use cgroup parent"):
        check_parent(asked)


@pytest.mark.parametrize("asked", ["/a/../..", "..", "/a/./b", "kubepods.slice", "/kubepods.slice/pod1.slice"])
def test_a_parent_that_leads_elsewhere_or_is_systemds_is_refused(asked: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot use cgroup parent"):
        check_parent(asked)
