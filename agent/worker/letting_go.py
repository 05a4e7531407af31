"""What capture's end means for connections that are already carried."""

from agent.book import Book, Entry
from agent.connections import Direction, Security, Verdict

NO_MORE = "nothing is captured on this node any more (`culvert capture status`)"
"""The reason on record."""


def let_go(book: Book) -> None:
    """End what goes on only as long as there are rules: they translate what was captured, and lead the answers to
    borrowed addresses back. What came out of a tunnel and was dialled from the node's own address goes on."""
    for entry in list(book.live.values()):
        if entry.carrier is not None and _leans_on_rules(entry):
            entry.carrier.abort(NO_MORE, Verdict.FAILED)


def _leans_on_rules(entry: Entry) -> bool:
    return entry.direction is Direction.OUTBOUND or entry.security is not Security.MTLS or entry.source_kept
