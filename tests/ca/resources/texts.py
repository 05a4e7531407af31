"""Objects as operators write them, and what is said of those that are wrong."""

import pytest

from ca.resources.documents import DocumentError, read, to_yaml
from ca.resources.kinds import Resource, decode, encode


def one(text: str) -> Resource:
    """The only object in `text`, which stays itself encoded and written anew."""
    (placed,) = read([("w.yaml", text)])
    assert decode(encode(placed.resource)) == placed.resource
    assert read([("again.yaml", to_yaml([placed.resource]))])[0].resource == placed.resource
    return placed.resource


def complaint(text: str, right: str = "", wrong: str = "") -> str:
    """What is said of `text` with `wrong` in place of what is `right` in it."""
    assert right in text
    with pytest.raises(DocumentError) as caught:
        read([("w.yaml", text.replace(right, wrong) if right else text)])
    return str(caught.value)
