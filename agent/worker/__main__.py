"""`python -m agent.worker FD` is a worker; the first ones are forked instead (agent/forking.py)."""

import signal
import sys

from agent import lean
from agent.forking import WORKER, call_itself

lean.begin()
from agent.worker.worker import serve  # noqa: E402 - only now

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which drains
call_itself(*WORKER)
serve(int(sys.argv[1]))
