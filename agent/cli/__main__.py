"""`python -m agent.cli` is `culvert`."""

from agent.cli import main

main()
