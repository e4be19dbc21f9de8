"""Signs of Ascend NPUs and NVIDIA GPUs that can be read without torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import List, Optional, Tuple

_ASCEND = ('/usr/local/Ascend/ascend-toolkit', '/usr/local/Ascend/latest')


def ascend_signs(root: Path = Path('/')) -> List[str]:
    """Signs that this machine has Ascend NPUs; empty if there are none.

    Args:
        root: Root of the file system to look at.
    """
    signs = [str(path) for path in sorted(root.glob('dev/davinci[0-9]*'))]
    if shutil.which('npu-smi'):
        signs.append('npu-smi')
    homes = [os.environ.get('ASCEND_HOME_PATH', ''), os.environ.get('ASCEND_TOOLKIT_HOME', ''), *_ASCEND]
    signs += [home for home in homes if home and (root / home.lstrip('/')).is_dir()]
    return signs


def driver_cuda() -> Optional[Tuple[int, int]]:
    """The newest CUDA version that the installed NVIDIA driver supports; None without a working driver and GPU."""
    if shutil.which('nvidia-smi') is None:
        return None
    try:
        done = subprocess.run(['nvidia-smi'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'CUDA Version:\s*(\d+)\.(\d+)', done.stdout.decode('utf-8', 'replace'))
    return (int(found.group(1)), int(found.group(2))) if found else (12, 0)
