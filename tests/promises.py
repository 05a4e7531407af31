"""What must not be seen even once."""

from collections.abc import Iterator
from contextlib import contextmanager


class NotEvenOnce(AssertionError):
    """A promise did not hold. The test has no second try (tests/conftest.py), which would try away a leak that shows
    itself one time in a hundred."""


@contextmanager
def not_even_once() -> Iterator[None]:
    """For assertions that nothing is seen in clear, and nobody locked out."""
    try:
        yield
    except AssertionError as error:
        raise NotEvenOnce(str(error)) from error
