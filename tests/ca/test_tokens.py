"""Join tokens as text."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.tokens import MAX_TOKEN, JoinToken, TokenError

TOKEN = JoinToken.new("10.0.0.1:15012", "ab" * 32, "web-1")
GOOD = {"address": "10.0.0.1:15012", "root": "ab" * 32, "node": "web-1", "secret": "A" * 43}


def test_a_token_makes_the_round_trip() -> None:
    assert JoinToken.parse(str(TOKEN)) == TOKEN
    assert JoinToken.parse(f"  {TOKEN}\n") == TOKEN
    assert str(TOKEN).startswith("culvert1.")
    assert set(str(TOKEN)[9:]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_the_secret_shows_in_no_repr() -> None:
    assert "secret" not in repr(TOKEN)


def test_two_tokens_are_never_the_same() -> None:
    other = JoinToken.new(TOKEN.address, TOKEN.root, TOKEN.node)
    assert TOKEN.proves(TOKEN.digest)
    assert not other.proves(TOKEN.digest)


def _text(**changed: object) -> str:
    content = {k: v for k, v in (GOOD | changed).items() if v is not None}
    return "culvert1." + base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def test_a_newer_centre_may_have_added_fields() -> None:
    assert JoinToken.parse(_text(more=1)).node == "web-1"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is no join token: one begins with culvert1"),
        ("hello", "is no join token"),
        (str(TOKEN).removeprefix("culvert1."), "is no join token"),
        (str(TOKEN).replace("culvert1.", "culvert2."), "of version 2, made by a newer centre"),
        ("culvert1.", "copy all of it"),
        (str(TOKEN)[:-1], "copy all of it"),
        (str(TOKEN)[:-40], "copy all of it"),
        (str(TOKEN) + "é", "copy all of it"),
        (str(TOKEN) + "A" * MAX_TOKEN, f"at most {MAX_TOKEN}"),
        (_text(secret=None), "copy all of it"),
        (_text(secret=7), "copy all of it"),
        (_text(secret="A" * 42), "copy all of it|have a new one made"),
        (_text(secret="AAAA"), "have a new one made"),
        (_text(root="ab"), "have a new one made"),
        (_text(root="AB" * 32), "have a new one made"),
        (_text(address="here"), "have a new one made"),
        (_text(node="Web_1"), "damaged: node 'Web_1' is not a name"),
    ],
)
def test_what_is_no_token_says_so(text: str, what: str) -> None:
    with pytest.raises(TokenError, match=what):
        JoinToken.parse(text)


@given(st.one_of(st.text(), st.text().map("culvert1.".__add__), st.binary().map(lambda b: "culvert1." + b.hex())))
def test_arbitrary_text_is_no_token(text: str) -> None:
    with pytest.raises(TokenError):
        JoinToken.parse(text)
