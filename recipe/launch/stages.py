"""The stages of a launch, for test/lib.sh. ``performance`` and ``evaluate`` are launched as ``full`` is.

python tools/launch.py check full OPTIONS          # silent, status 0 if the options are good; a bare Python 3.8 will do
python tools/launch.py check full --help           # the table, status 10: there is nothing to launch
python tools/launch.py environment full OPTIONS    # npu, gpu or cpu: the test/env_*.sh for this machine and options
python tools/launch.py run full OPTIONS            # checks the job, runs it and reports
"""

from __future__ import annotations

import sys
from typing import List, Optional

from recipe.core import console
from recipe.core.run_options import SCRIPTS
from recipe.launch import options

ENVIRONMENTS = {'npu': 'npu', 'cuda': 'gpu', 'cpu': 'cpu'}


def _environment(argv: List[str]) -> None:
    """Print which test/env_*.sh suits. torch is not imported: it would read its variables too early."""
    from recipe.engine import devices

    console.say(ENVIRONMENTS[devices.likely_device(options.parse(argv[0], argv[1:]).device)])


def _run(argv: List[str]) -> None:
    from recipe.launch import cli

    cli.main(argv)


STAGES = {'check': options.main, 'environment': _environment, 'run': _run}


def main() -> Optional[int]:
    """Entry point; see the module's docstring."""
    stage, script = [*sys.argv[1:3], '', ''][:2]
    if stage not in STAGES or script not in SCRIPTS:
        usage = f'usage: launch.py {"|".join(STAGES)} {"|".join(SCRIPTS)} OPTIONS'
        raise console.UserError(usage, status=console.EXIT_USAGE)
    return STAGES[stage](sys.argv[2:])
