"""Runs a command with the emulated NPU in place of CANN and its chips; for the tests in this folder alone.

    python test/npu/emulator/emulate.py COMMAND ...      # in the folder that test/npu/run.sh has set up

The emulator works for this process's descendants only, says so in each on stderr, and lets none of them write into
results/ of the recipe.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BUILT = ROOT / '.emulator'


def _start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks: with its number this names one process for ever."""
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]


def environment(built: Path = BUILT) -> Dict[str, str]:
    """This process's environment with the emulator in it, for its descendants.

    Args:
        built: What build.py was given.
    """
    values = dict(os.environ)
    cann = built / 'cann'
    values.update(
        # As after `source set_env.sh`.
        LD_LIBRARY_PATH=os.pathsep.join(filter(None, [str(cann / 'lib64'), values.get('LD_LIBRARY_PATH')])),
        ASCEND_TOOLKIT_HOME=str(cann),
        ASCEND_HOME_PATH=str(cann),
        ASCEND_OPP_PATH=str(cann / 'opp'),
        PYTHONPATH=os.pathsep.join(filter(None, [str(HERE / 'site'), values.get('PYTHONPATH')])),
        EMULATED_NPU_STARTER=f'{os.getpid()}:{_start_time(os.getpid())}',
        EMULATED_NPU_KERNELS=str(built / 'kernels.so'),
    )
    return values


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('error: give a command to run, such as: python test/npu/emulator/emulate.py python -m pytest test/npu')
    sys.exit(subprocess.run(sys.argv[1:], env=environment(), check=False).returncode)
