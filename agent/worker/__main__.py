"""`python -m agent.worker FD` is a worker."""

import sys

from agent.worker.worker import serve

serve(int(sys.argv[1]))
