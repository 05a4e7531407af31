import pytest

from ca import endpoint


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("10.0.0.1:15012", "10.0.0.1", 15012), ("[fd00::1]:1", "fd00::1", 1), ("centre.example:0", "centre.example", 0)],
)
def test_both_ways(text: str, host: str, port: int) -> None:
    assert endpoint.split(text) == (host, port)
    assert endpoint.join(host, port) == text


@pytest.mark.parametrize("text", ["10.0.0.1", "[fd00::1]", "centre"])
def test_a_port_may_have_a_default(text: str) -> None:
    assert endpoint.split(text, 9)[1] == 9


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:b", "a:65536", "fd00::1:5", "10.0.0.1"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|brackets"):
        endpoint.split(text)
