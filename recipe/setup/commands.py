"""Runs the commands of a set-up step. Standard library only, Python 3.8 on."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, TextIO

from recipe.core import console, tied_process

LAST_LINES = 12


class Caller:
    """Runs commands and writes their output to the log of the current step.

    Args:
        folder: Folder in which they run.
        logs: Folder of the logs.
        retry: Command with which to continue after a failure.
        out: Stream for messages to the user.

    Attributes:
        step: Name of the current step; its log is named after it.
    """

    def __init__(self, folder: Path, logs: Path, retry: str, out: TextIO) -> None:
        self.step = ''
        self._folder = folder
        self._logs = logs
        self._retry = retry
        self._out = out

    @property
    def log(self) -> Path:
        """The log of the step's last command."""
        return self._logs / f'{self.step}.log'

    def output(self) -> List[str]:
        """Output of the last command."""
        return self.log.read_text('utf-8', 'replace').splitlines()[1:]

    def run(self, command: Sequence[str], env: Dict[str, str]) -> None:
        """Run one command, which ends when this process ends.

        Args:
            command: The program and its arguments.
            env: Its environment variables.

        Raises:
            console.UserError: It failed; its last lines were shown.
        """
        self._logs.mkdir(exist_ok=True)
        with open(str(self.log), 'w') as file:
            file.write(f'$ {" ".join(map(shlex.quote, command))}\n')
            file.flush()
            options = {'cwd': str(self._folder), 'stdout': file, 'stderr': subprocess.STDOUT}
            with tied_process.started(command, env={**env, 'PYTHONUNBUFFERED': '1'}, **options) as process:
                self._watch(process)
        if process.returncode:
            for line in self.output()[-LAST_LINES:]:
                print(f'  | {console.printable(line)}', file=sys.stderr)
            raise self.failure(f'failed (exit status {process.returncode})')

    def failure(self, what: str) -> console.UserError:
        """The error for a step that failed; names the log and how to continue."""
        return console.UserError(
            f'step {self.step} {what}, log: {self.log}', f'mend what it says, then go on with: {self._retry}'
        )

    def _watch(self, process: subprocess.Popen[Any]) -> None:
        """Wait for a process; on a terminal, show the seconds and the last line of its log meanwhile."""
        started = time.monotonic()
        shown = False
        while True:
            try:
                process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if self._out.isatty():
                    shown = True
                    last = console.printable(_last_line(self.log))
                    self._show(f'  {self.step:<13} {time.monotonic() - started:.0f} s  {last}')
        if shown:
            self._show('')

    def _show(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f'\r\033[K{text[:width]}', end='', file=self._out, flush=True)


def _last_line(log: Path) -> str:
    with open(str(log), 'rb') as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = [line.strip() for line in file.read().decode('utf-8', 'replace').splitlines() if line.strip()]
    return lines[-1] if lines else ''
