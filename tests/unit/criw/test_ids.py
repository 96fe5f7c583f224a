import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import NotFound
from criw.ids import is_id, new_id, resolve

IDS = st.lists(st.text("01", min_size=8, max_size=8), unique=True)  # short, so that beginnings are often shared


def test_a_new_id_is_an_id_and_new() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(is_id(one) and len(one) == 64 for one in ids)


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "٣" * 64])
def test_other_texts_are_no_ids(text: str) -> None:
    assert not is_id(text)


@given(IDS, st.text("01", max_size=9))
def test_a_text_finds_the_one_id_it_begins(ids: list[str], text: str) -> None:
    begun = [one for one in ids if one.startswith(text)]
    if text and len(begun) == 1:
        assert resolve(text, ids, what="pod") == begun[0]
    else:
        with pytest.raises(NotFound, match=r"^cannot .* pod"):
            resolve(text, ids, what="pod")


@given(IDS)
def test_a_whole_id_finds_itself(ids: list[str]) -> None:
    for one in ids:
        assert resolve(one, ids, what="pod") == one


def test_a_whole_id_finds_itself_even_where_another_begins_with_it() -> None:
    assert resolve("ab", ["abc", "ab"], what="pod") == "ab"


@pytest.mark.parametrize(
    ("text", "reason"), [("", "without an id"), ("x", "no such id"), ("ab", "more than one id begins with it")]
)
def test_the_message_tells_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(NotFound, match=reason):
        resolve(text, ["abc", "abd"], what="container")
