"""Ctrl-C and the signals of a scheduler while no rank runs: one line and 128 + the signal, in whatever code they come.

While ranks run, ``ranks`` passes the signals on to them.
"""

from __future__ import annotations

import contextlib
import signal
from typing import Iterator, List

from recipe.core import console

BEFORE = 'the launcher before its work began'
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(console.UserError):
    """A signal asked the launcher to end.

    Args:
        signum: The signal.
        what: What it has ended, and what is left.
    """

    def __init__(self, signum: signal.Signals, what: str) -> None:
        super().__init__(f'{signum.name} ended {what}', status=128 + signum)


@contextlib.contextmanager
def caught(what: str) -> Iterator[None]:
    """Raise ``Interrupted`` if a signal arrives in the block.

    Code in the block may turn the first exception into another one, as mmengine does while it formats a config, or may
    swallow it. So the signal is noted too. A signal that is ignored, as SIGHUP under nohup, stays ignored.

    Args:
        what: What the signal ends, and what is left.
    """
    arrived: List[signal.Signals] = []

    def note(number: int, _: object) -> None:
        arrived.append(signal.Signals(number))
        raise KeyboardInterrupt

    handled = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, note) for signum in handled}
    try:
        yield
    except BaseException:
        if not arrived:
            raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if arrived:
        raise Interrupted(arrived[0], what)
