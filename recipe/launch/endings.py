"""What an exit status of a training means and what to do, in words."""

from __future__ import annotations

from recipe.core import exit_status
from recipe.launch.ranks import Failure, tail


def explain(failure: Failure) -> str:
    """Say in one line what ended a training and what to do.

    Args:
        failure: The rank's last line on stderr that begins with ``error:`` says what was wrong. Of its two logs,
            written in one moment, ``failure.log`` may be the other one.
    """
    lines = failure.last_lines + tail(failure.log.with_name('stderr.log'))
    said = [line[len('error: ') :] for line in lines if line.startswith('error: ')]
    parts = [failure.what, *said[-1:], exit_status.advice(failure.status)]
    return ': '.join(parts[:2]) + (f'; {parts[-1]}' if parts[-1] else '') if said else '; '.join(filter(None, parts))
