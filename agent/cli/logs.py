"""The log of a long-running command: structlog to stderr, for people on a terminal, else one JSON object a line."""

import logging
import sys

from agent.lean import Later, instead

# In a process that runs for months structlog takes rich for tracebacks in colour that nobody looks at, 4 MB, and
# asyncio for loggers of another kind than ours, 2 MB.
with instead("rich", None), instead("asyncio", Later("asyncio")):
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
