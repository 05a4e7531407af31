"""The agent's own log through a Sink: a journal that hangs must not hang the agent."""

import structlog

from agent.telemetry.sink import Sink


class _Logger:
    """What structlog ends at; every level is a line."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.write(line.encode("utf-8", "backslashreplace") + b"\n")

    log = debug = info = warn = warning = error = critical = exception = fatal = failure = err = msg


def log_to(sink: Sink) -> None:
    """Send what structlog has rendered to `sink`, which the caller closes at the very end."""
    structlog.configure(logger_factory=lambda *_: _Logger(sink))
