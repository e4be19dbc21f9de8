"""Becomes one rank: ``start SCRIPT ARGUMENTS``, run by torchrun inside ``agent``.

A rank outlives neither torchrun, even if that is killed with -9, nor does it share a session with the other ranks, so
that it can be ended together with its loader processes and a Ctrl-C in the terminal does not reach it unasked.
"""

import os
import signal
import sys

from recipe.core import processes


def main() -> None:
    """Entry point; see the module's docstring."""
    processes.die_with_parent(signal.SIGKILL, int(os.environ['RECIPE_AGENT_PID']))
    if os.getsid(0) != os.getpid():  # newer torchruns have done so already
        os.setsid()
    os.execv(sys.executable, [sys.executable, '-u', *sys.argv[1:]])
