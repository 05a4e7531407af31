"""The log of a long-running command: structlog to stderr, for people on a terminal, else one JSON object a line."""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class _Later(ModuleType):
    """A module that is imported when somebody asks for something in it."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _instead(name: str, module: ModuleType | None) -> Iterator[None]:
    """Meanwhile importing `name` gives `module`, or fails as if it were not installed."""
    before = sys.modules.pop(name, None)
    sys.modules[name] = module  # type: ignore[assignment] # None is how Python itself says it
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


# In a process that runs for months structlog takes rich for tracebacks in colour that nobody looks at, 4 MB, and
# asyncio for loggers of another kind than ours, 2 MB.
with _instead("rich", None), _instead("asyncio", _Later("asyncio")):
    import structlog


def configure(level: str = "info") -> None:
    """Set it up for this process; `level` is debug, info, warning or error."""
    interactive = sys.stderr.isatty()
    renderers: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if interactive
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not interactive),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
