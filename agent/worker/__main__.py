"""`python -m agent.worker FD` is a worker; the first ones are forked instead (agent/forking.py)."""

import signal
import sys

from agent.forking import WORKER, call_itself
from agent.worker.worker import serve

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which drains
call_itself(*WORKER)
serve(int(sys.argv[1]))
