import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw_ctl.tables import age, print_message, print_table, short, size
from criw_proto.runtime.v1 import Container, ContainerState


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s ago"),
        (59, "59 s ago"),
        (60, "1 minute ago"),
        (7199, "1 hour ago"),
        (7200, "2 hours ago"),
        (200_000, "2 days ago"),
        (-5, "0 s ago"),
    ],
)
def test_age(seconds: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    assert age((1_800_000_000 - seconds) * 10**9) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5_300_000_000, "5.3 GB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@given(st.integers(min_value=0, max_value=10**15 - 10**12))
def test_a_size_is_right_to_its_last_digit(count: int) -> None:
    number, unit = size(count).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert float(number) < 1000
    assert float(number) * factor == pytest.approx(count, abs=0.051 * factor)


def test_ids_are_cut() -> None:
    assert short("sha256:" + "0123456789abcdef" * 4) == "0123456789abc"


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "MESSAGE"), [("[a]", "x" * 500), ("b", "")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "MESSAGE"]
    assert first.split() == ["[a]", "x" * 500]
    assert second.split() == ["b"]


def test_json_has_every_field_and_states_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    print_message(Container(id="1", state=ContainerState.CONTAINER_CREATED))
    text = capsys.readouterr().out
    assert '"state": "CONTAINER_CREATED"' in text
    assert '"podSandboxId": ""' in text
