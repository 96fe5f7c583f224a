import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import Signal
from criw_supervisor.signals import cri_signal, of_cri, parse_signal

RTMIN, RTMAX = int(signal.SIGRTMIN), int(signal.SIGRTMAX)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15), ("TERM", 15), ("term", 15), (" SIGQUIT ", 3), ("15", 15), ("9", 9), ("SIGRTMIN", RTMIN),
        ("SIGRTMIN+3", RTMIN + 3), ("RTMIN+3", RTMIN + 3), ("SIGRTMAX-1", RTMAX - 1), (str(RTMAX), RTMAX),
    ],
)  # fmt: skip
def test_the_ways_images_write_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "-1", str(RTMAX + 1), "SIGNOPE", "SIGRTMIN+99", "SIGRTMIN+", "RTMAX-99", "²"]
)
def test_what_is_no_signal_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no such signal"):
        parse_signal(text)


@given(st.text())
def test_any_text_is_a_signal_or_refused(text: str) -> None:
    try:
        number = parse_signal(text)
    except InvalidArgument:
        return
    assert 0 < number <= RTMAX


@pytest.mark.parametrize("value", [value for value in Signal if value])
def test_every_signal_of_the_cri_has_a_number_and_comes_back_from_it(value: Signal) -> None:
    number = of_cri(value)
    assert 0 < number <= RTMAX
    assert of_cri(cri_signal(number)) == number  # some numbers have two names


def test_the_default_is_no_number() -> None:
    assert of_cri(Signal(0)) == 0


def test_a_number_the_cri_lacks_is_told_as_the_default() -> None:
    assert cri_signal(33) == Signal(0)  # the C library's own


def test_a_value_the_cri_lacks_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="signal 999"):
        of_cri(Signal(999))
