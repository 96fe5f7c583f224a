"""Documents and words of strangers: read or refused, and repeated only when they are clean."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from criw_image.foreign import address, cleaned, json_object, refusal_in, token_in

NOT_JSON = [
    b"",
    b"[]",
    b"\xff",
    b"{",
    b'{"a": NaN}',
    b'{"a": -Infinity}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}",
    b'{"a":' * 1000 + b"1" + b"}" * 1000,
]


@pytest.mark.parametrize("data", NOT_JSON)
def test_what_is_no_json_object_is_one_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        json_object(data)
    assert refusal_in(data) == ""
    assert token_in(data) == ""


def test_null_is_nothing() -> None:
    assert json_object(b'{"a": null, "b": 0}') == {"b": 0}


@given(st.text())
def test_cleaned_words_are_one_short_line_no_terminal_obeys(text: str) -> None:
    line = cleaned(text, limit=20)
    assert len(line) <= 20
    assert line.isprintable()


def test_words_that_are_clean_stay_as_they_are() -> None:
    assert cleaned("manifest “ä” unknown") == "manifest “ä” unknown"
    assert cleaned("one\r\ntwo\x1b[31m\u202e") == "one two [31m"
    assert cleaned("x" * 301) == "x" * 299 + "…"


def errors(*problems: object) -> bytes:
    return json.dumps({"errors": problems}).encode()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (errors({"code": "MANIFEST_UNKNOWN", "message": "no such tag"}), " (manifest unknown: no such tag)"),
        (errors({"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}), " (manifest unknown)"),
        (errors({"code": "DENIED"}, {"message": "no"}), " (denied; no)"),
        (errors({"code": "X", "message": "a\x1b[2J\nb"}), " (x: a [2J b)"),
        (errors({"code": 1, "message": ["x"]}), " (1: ['x'])"),
        (errors("text", None), ""),
        (b'{"errors": "text"}', ""),
        (b"<html>", ""),
    ],
)
def test_a_refusal_is_told_in_the_words_people_look_for(body: bytes, said: str) -> None:
    assert refusal_in(body) == said


@pytest.mark.parametrize("token", ["a\r\nb", "a\nX-Injected: b", "\x1b", "ä", "", 1, ["a"]])
def test_a_token_that_cannot_be_sent_is_none(token: object) -> None:
    assert token_in(json.dumps({"token": token}).encode()) == ""
    assert token_in(b'{"token": null, "access_token": "right"}') == "right"


@pytest.mark.parametrize(
    "text", ["http://", "http:///x", "http://[", "ftp://a/b", "a/b", "http://a:0/", "http://a..b/"]
)
def test_an_address_nothing_can_be_sent_to_is_one_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        address(text)


def test_an_address_is_kept_as_it_is_written_but_for_its_user() -> None:
    assert str(address("http://u:p@a.example/x%2Fy?s=a%2Fb")) == "http://a.example/x%2Fy?s=a%2Fb"
    assert str(address("../c d", beside=URL("http://a.example/x/y"))) == "http://a.example/c%20d"


@given(st.text())
def test_any_address_is_absolute_or_refused(text: str) -> None:
    try:
        found = address(text, beside=URL("http://a.example/x"))
    except ValueError:
        return
    assert found.origin()
