"""The book of connections."""

from agent import book as book_module
from agent.book import Book
from agent.connections import Connection, Direction, Party, Security, Verdict


class Carried:
    """A carrier that only counts."""

    sent, received = 3, 4

    def __init__(self) -> None:
        self.aborted: list[tuple[str, Verdict]] = []

    def abort(self, reason: str = "", verdict: Verdict = Verdict.REFUSED) -> None:
        self.aborted.append((reason, verdict))


def written() -> tuple[Book, list[None]]:
    told: list[None] = []
    return Book(7, lambda: told.append(None)), told


def enter(book: Book):
    return book.enter(Direction.OUTBOUND, Security.MTLS, Party("shop/web"))


def test_from_the_first_to_the_last_word():
    book, told = written()
    entry = enter(book)
    assert entry.id == "7.1"
    assert list(book.live) == ["7.1"]
    assert told == []
    entry.carrier = Carried()
    book.open(entry)
    book.close(entry)
    assert len(told) == 1
    (closed,), dropped = book.take()
    assert (closed.state, closed.carried) == ("closed", True)
    assert (closed.sent, closed.received, closed.verdict, dropped) == (3, 4, Verdict.ALLOWED, 0)
    assert not book.live
    assert book.take() == ([], 0)


def test_the_first_verdict_and_reason_stand_and_closing_twice_is_closing_once():
    book, _ = written()
    entry = enter(book)
    book.close(entry, Verdict.REFUSED, "policy")
    book.close(entry, Verdict.FAILED, "something else")
    (closed,), _ = book.take()
    assert (closed.verdict, closed.reason, closed.carried) == (Verdict.REFUSED, "policy", False)


def test_records_nobody_fetches_are_bounded_and_those_lost_are_counted():
    book, _ = written()
    for _ in range(book_module.KEEP + 5):
        entry = enter(book)
        book.open(entry)
        book.close(entry)
    closed, dropped = book.take()
    assert len(closed) == book_module.KEEP
    assert dropped == 5
    assert closed[0].id == "7.6"


def test_what_opens_for_too_long_is_given_up_and_what_is_open_is_not():
    book, _ = written()
    entries = [enter(book) for _ in range(4)]
    for entry in entries:
        entry.carrier = Carried()
    book.open(entries[1])
    entries[3].started += 1000
    book.expire(-1)
    assert [len(e.carrier.aborted) for e in entries] == [1, 0, 1, 0]
    reason, verdict = entries[0].carrier.aborted[0]
    assert verdict is Verdict.FAILED
    assert "no connection came about" in reason


def test_each_fact_of_an_entry_stands_where_it_belongs():
    book, _ = written()
    entry = enter(book)
    own = {"id", "opened", "state", "duration", "sent", "received", "preface"}
    facts = [f for f in Connection.__struct_fields__ if f not in own]
    for fact in facts:
        setattr(entry, fact, f"the {fact}")
    entry.preface, entry.carrier, entry.state = b"12345", Carried(), "open"
    record = entry.record()
    assert {f: getattr(record, f) for f in facts} == {f: f"the {f}" for f in facts}
    assert (record.id, record.opened, record.state) == ("7.1", entry.opened, "open")
    assert (record.sent, record.received, record.preface) == (3, 4, 5)
    assert 0 <= record.duration < 60


def test_entries_begin_alike_and_share_nothing():
    book, _ = written()
    one, other = enter(book), enter(book)
    assert one != other
    assert (one.destination, one.verdict, one.reason, one.carrier) == (Party(), Verdict.ALLOWED, "", None)
    one.verdict, one.destination = Verdict.REFUSED, Party("shop/db")
    assert (other.verdict, other.destination) == (Verdict.ALLOWED, Party())
