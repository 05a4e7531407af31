import struct

from hypothesis import given
from hypothesis import strategies as st

from redirect.decode import decode_rule
from redirect.desired import Desired
from redirect.encode import add_elements, batch, remove_table, replace_table
from redirect.frames import attributes, split
from redirect.plan import plan
from redirect.ruleset import Code, Key, Rule, Ruleset, Set, Verdict, VerdictMap
from tests.redirect.desires import desired as desires


def _rules(ruleset: Ruleset) -> list[tuple[str, Rule]]:
    """The rules of a batch, read back without a kernel."""
    found = []
    for frame in split(batch(replace_table(ruleset))):
        if frame.kind == 10 << 8 | 6:
            row = dict(attributes(frame.payload[4:]))
            found.append((row[2].rstrip(b"\0").decode(), decode_rule(row)))
    return found


@given(desires())
def test_rules_come_back(wanted: Desired) -> None:
    ruleset = plan(wanted)
    expected = [(chain.name, rule) for chain in ruleset.chains for rule in chain.rules]
    assert _rules(ruleset) == expected
    assert [rule.comment for _, rule in _rules(ruleset)] == [rule.comment for _, rule in expected]


def test_encoding_twice_gives_the_same() -> None:
    ruleset = plan(Desired(mesh=frozenset({("10.0.0.1", 80)})))
    assert batch(replace_table(ruleset)) == batch(replace_table(ruleset))


def test_a_batch_is_framed_and_numbered() -> None:
    frames = list(split(batch(remove_table("culvert"), first=7)))
    assert [frame.kind for frame in frames] == [0x10, 10 << 8, 10 << 8 | 2, 0x11]
    assert [frame.number for frame in frames] == [7, 8, 9, 10]
    # The subsystem, in network order, on the frames of the batch.
    assert frames[0].payload == frames[-1].payload == bytes([0, 0, 0, 10])


@given(st.integers(0, 9000))
def test_no_message_of_elements_is_too_long(count: int) -> None:
    elements = frozenset(n.to_bytes(20, "big") for n in range(count))
    found = set()
    for message in add_elements("culvert", Set("s", Key.ENDPOINT6, elements)):
        assert struct.unpack_from("=I", message.data)[0] == len(message.data) < 65536
        for number, payload in attributes(message.data[20:]):
            if number == 3:
                found |= {dict(attributes(dict(attributes(e))[1]))[1] for _, e in attributes(payload)}
    assert found == elements


def test_verdicts_with_the_longest_names_fit() -> None:
    goto = Verdict(Code.GOTO, "n" * 255)
    elements = frozenset((n.to_bytes(4, "big"), goto) for n in range(1000))
    for message in add_elements("culvert", VerdictMap("m", Key.UID, elements)):
        assert len(message.data) < 65536
