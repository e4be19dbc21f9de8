"""Becomes one rank: ``start SCRIPT ARGUMENTS``, run by torchrun inside ``agent``.

A rank ends with torchrun, even if torchrun is killed with -9. It leads a session of its own: it can be ended together
with its loader processes, and a Ctrl-C in the terminal does not reach it directly.
"""

import os
import signal
import sys

from recipe.core import processes
from recipe.launch import variables


def main() -> None:
    """Entry point; see the module's docstring."""
    processes.die_with_parent(signal.SIGKILL, int(os.environ[variables.AGENT_PID]))
    if os.getsid(0) != os.getpid():  # newer versions of torchrun have done so already
        os.setsid()
    os.execv(sys.executable, [sys.executable, '-u', *sys.argv[1:]])
