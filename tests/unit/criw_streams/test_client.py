import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw_streams.client import Size, Sizes

ONE = b'{"Width":120,"Height":40}\n'


@pytest.mark.parametrize("step", [1, 7, len(ONE)])
async def test_a_size_is_read_from_pieces(step: int) -> None:
    sizes = Sizes()
    for at in range(0, len(ONE), step):
        sizes.feed(ONE[at : at + step])
    assert await sizes.next() == Size(120, 40)


async def test_the_last_size_counts_and_zero_is_none() -> None:
    sizes = Sizes()
    sizes.feed(ONE + b'{"Width":80,"Height":24}{"Width":0,"Height":9} {"Width":9,"Height":65536}')
    assert await sizes.next() == Size(80, 24)
    sizes.end()
    assert await sizes.next() is None


@pytest.mark.parametrize(
    "wrong",
    [
        b"[1]",
        b"nonsense",
        b'{"width":1,"height":2}',
        b'{"Width":Infinity,"Height":1}',
        b'{"Width":1e999,"Height":1}',
        b'{"Width":NaN,"Height":1}',
        b'{"Width":"wide","Height":1}',
        b'{"Width":null,"Height":1}',
        b'{"Width":' + b"[" * 100_000,
        b'{"Width":' + b"9" * 5000 + b',"Height":1}',
        b'{"Width":' + b" " * 5000,
        b"\xff\xfe",
    ],
)
async def test_after_what_cannot_be_read_nothing_is(wrong: bytes) -> None:
    sizes = Sizes()
    sizes.feed(ONE + wrong)
    sizes.feed(b'{"Width":1,"Height":1}')
    assert await sizes.next() == Size(120, 40)
    assert await sizes.next() is None


async def test_a_great_many_sizes_take_little_time() -> None:
    """They are read where the other sessions are served."""
    sizes, many = Sizes(), ONE * (4 * 1024 * 1024 // len(ONE))
    before = time.process_time()
    sizes.feed(many)
    assert time.process_time() - before < 3
    assert await sizes.next() == Size(120, 40)


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), min_size=1), st.data())
async def test_however_they_are_cut_the_last_is_had(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    text = b" ".join(json.dumps({"Width": width, "Height": height}).encode() for width, height in pairs)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    sizes = Sizes()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        sizes.feed(text[start:end])
    assert await sizes.next() == Size(*pairs[-1])


@given(st.binary())
def test_any_bytes_are_read_or_passed_over(data: bytes) -> None:
    Sizes().feed(data)
