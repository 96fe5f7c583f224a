from criw_ctl.images import rows
from criw_proto.runtime.v1 import Image


def test_an_image_has_a_row_for_each_name() -> None:
    one = Image(id="sha256:" + "1" * 64, repo_tags=["reg:5000/b:2", "docker.io/library/a:1"], size=1_500_000)
    assert rows([one]) == [
        ("docker.io/library/a", "1", "1" * 13, "1.5 MB"),
        ("reg:5000/b", "2", "1" * 13, "1.5 MB"),
    ]


def test_an_image_without_tag_is_shown_by_its_repository() -> None:
    pulled = Image(id="sha256:" + "2" * 64, repo_digests=["docker.io/library/a@sha256:" + "3" * 64], size=1)
    assert rows([pulled, Image(id="4" * 64, size=2)]) == [
        ("<none>", "<none>", "4" * 13, "2 B"),
        ("docker.io/library/a", "<none>", "2" * 13, "1 B"),
    ]
