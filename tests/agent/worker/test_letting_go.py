"""Live connections when capture ends."""

import pytest

from agent.book import Book
from agent.connections import Direction, Party, Security, Verdict
from agent.worker.letting_go import NO_MORE, let_go
from tests.agent.test_book import Carried

OUT, IN = Direction.OUTBOUND, Direction.INBOUND


@pytest.mark.parametrize(
    ("direction", "security", "borrowed", "ends"),
    [
        (OUT, Security.MTLS, False, True),
        (OUT, Security.LOCAL, False, True),
        (OUT, Security.PLAINTEXT, False, True),
        (IN, Security.PLAINTEXT, False, True),
        (IN, Security.LOCAL, False, True),
        (IN, Security.MTLS, True, True),
        (IN, Security.MTLS, False, False),
    ],
)
def test_what_leans_on_rules_ends(direction: Direction, security: Security, borrowed: bool, ends: bool) -> None:
    book, carrier = Book(1, lambda: None), Carried()
    entry = book.enter(direction, security, Party())
    entry.source_kept, entry.carrier = borrowed, carrier
    book.enter(OUT, Security.MTLS, Party())  # that nobody carries yet
    let_go(book)
    assert carrier.aborted == ([(NO_MORE, Verdict.FAILED)] if ends else [])
