from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from criw.errors import InvalidArgument, NotFound
from criw_proto.runtime import v1 as cri
from criw_supervisor.ledger.index import Index, chunk, list_reply


@dataclass(frozen=True)
class Item:
    id: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def listing(self) -> bytes:
        return chunk(bytes(cri.Container(id=self.id)))


ITEMS = (
    Item("aa11", {"app": "web", "tier": "front"}),
    Item("aa22", {"app": "web", "tier": "back"}),
    Item("b", {}),
    Item("bb", {"app": "db"}),
)


@pytest.fixture
def index() -> Index[Item]:
    made: Index[Item] = Index("thing")
    for item in ITEMS:
        made.add(item)
    return made


@pytest.mark.parametrize(("text", "found"), [("aa11", 0), ("aa2", 1), ("b", 2), ("bb", 3)])
def test_an_id_or_a_unique_beginning_of_one_finds_it(index: Index[Item], text: str, found: int) -> None:
    assert index.find(text) is ITEMS[found]
    assert index.find_or_none(text) is ITEMS[found]


@pytest.mark.parametrize("text", ["x", "aa111", ""])
def test_what_is_not_there(index: Index[Item], text: str) -> None:
    with pytest.raises(NotFound, match="thing"):
        index.find(text)


def test_what_could_be_several_is_not_found_and_never_taken_for_nothing(index: Index[Item]) -> None:
    with pytest.raises(NotFound, match="more than one"):
        index.find("a")
    with pytest.raises(NotFound, match="more than one"):
        index.find_or_none("a")  # or a stop would succeed that stopped nothing


def test_for_calls_that_succeed_with_nothing_to_do(index: Index[Item]) -> None:
    assert index.find_or_none("x") is None
    with pytest.raises(InvalidArgument, match="without an id"):
        index.find_or_none("")


@pytest.mark.parametrize(
    ("prefix", "labels", "found"),
    [
        ("", {}, [0, 1, 2, 3]),
        ("aa", {}, [0, 1]),
        ("b", {}, [2]),  # exact wins
        ("", {"app": "web"}, [0, 1]),
        ("", {"app": "web", "tier": "back"}, [1]),
        ("aa11", {"tier": "back"}, []),
        ("", {"tier": ""}, []),
        ("zz", {}, []),
    ],
)
def test_filters_are_combined_with_and(
    index: Index[Item], prefix: str, labels: Mapping[str, str], found: list[int]
) -> None:
    assert index.matching(prefix, labels) == [ITEMS[number] for number in found]


def test_what_is_discarded_is_gone_and_may_be_discarded_again(index: Index[Item]) -> None:
    index.discard("b")
    index.discard("b")
    assert index.get("b") is None
    assert len(index) == 3
    assert index.find("b") is ITEMS[3]  # unique now


def test_it_may_change_while_it_is_walked(index: Index[Item]) -> None:
    for item in index:
        index.discard(item.id)
    assert len(index) == 0


@given(st.integers(0, 70_000))
@example(0)
@example(127)
@example(128)
@example(16_383)
@example(16_384)
@example(70_000)
def test_a_chunk_is_what_betterproto_writes_for_one_element(size: int) -> None:
    element = cri.Container(id="x" * size)
    assert chunk(bytes(element)) == bytes(cri.ListContainersResponse(containers=[element]))


@given(st.lists(st.text(max_size=300), max_size=5))
def test_a_list_reply_parses_as_the_list(ids: list[str]) -> None:
    reply = cri.ListContainersResponse.parse(list_reply([Item(one) for one in ids]))
    assert [one.id for one in reply.containers] == ids
