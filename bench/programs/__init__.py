"""Load generators of our own. Each file stands alone on the standard library: it runs as another user, on the system's
Python, its text given on the command line."""

import inspect
from types import ModuleType

from agent.lab.programs import SYSTEM_PYTHON


def command(program: ModuleType, *arguments: object) -> list[str]:
    """The command line that runs one of them, wherever its file may lie."""
    return [SYSTEM_PYTHON, "-I", "-c", inspect.getsource(program), *map(str, arguments)]
