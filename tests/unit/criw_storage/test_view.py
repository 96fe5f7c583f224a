import errno
import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from criw import kernel
from criw_storage.view import Steps, View

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4).map("/".join)
TARGETS = st.builds(str.__add__, st.sampled_from(["", "/"]), PATHS)


@given(
    st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=2), st.one_of(st.none(), TARGETS)), max_size=8),
    NAMES,
)
def test_links_are_followed_as_the_kernel_does_in_that_root(
    made: list[tuple[list[str], str | None]], asked: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for parts, target in made:
            path = root.joinpath(*parts)
            if path.parent.is_symlink() or os.path.lexists(path):
                continue
            path.parent.mkdir(exist_ok=True)
            if target is None:
                path.mkdir()
            else:
                path.symlink_to(target)
        found = View(root, [], (), Steps()).follow(asked)
        real = None
        if (root / asked).is_symlink():
            with kernel.suppress_errno(errno.ENOENT, errno.ELOOP):
                descriptor = kernel.open_in_root(root, asked)
                real = os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), root.resolve())
                os.close(descriptor)
        assert real == ("." if found == "" else found)
