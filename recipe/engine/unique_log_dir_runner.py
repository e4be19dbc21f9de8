import os
import os.path as osp
import re
import time
from typing import Dict, Sequence

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

_NAME = re.compile(r'(\d{8}_\d{6})(?:_(\d{3,}))?')
_NAME_BYTES = 32


@RUNNERS.register_module()
class UniqueLogDirRunner(Runner):
    """A runner whose log folder is new, and sorts behind all earlier ones.

    mmengine names the folder by the second in which the runner is built. Two
    starts in one second share it, so the second one's files replace those of
    the first. After the clock was set back, a later start sorts before an
    earlier one. And each machine takes the name from its own time zone.

    Here rank 0 chooses the name and makes the folder, and the other ranks take
    its name. It is ``<date>_<time>``, with a count behind it where an earlier
    start has that name or a later one: ``20260101_120000_002``.
    """

    def setup_env(self, env_cfg: Dict) -> None:
        """Set up the environment, and agree on the name of the log folder.

        Args:
            env_cfg (dict): As mmengine's runner takes it.
        """
        super().setup_env(env_cfg)
        name = torch.zeros(_NAME_BYTES, dtype=torch.uint8)
        if is_main_process():
            chosen = make_log_dir(self.work_dir).encode()
            name[: len(chosen)] = torch.tensor(list(chosen), dtype=torch.uint8)
        broadcast(name)
        self._timestamp = bytes(name.tolist()).rstrip(b'\0').decode()


def make_log_dir(work_dir: str) -> str:
    """Make a new log folder.

    Args:
        work_dir (str): Where it is made.

    Returns:
        str: Its name.
    """
    while True:
        name = next_name(os.listdir(work_dir), time.strftime('%Y%m%d_%H%M%S'))
        try:
            os.mkdir(osp.join(work_dir, name))
        except FileExistsError:
            continue
        return name


def next_name(existing: Sequence[str], stamp: str) -> str:
    """Name the log folder of a start.

    Args:
        existing (Sequence[str]): Names in the folder of the run, of which
            some are those of earlier starts.
        stamp (str): Date and time of this start.

    Returns:
        str: A name that sorts behind those of all earlier starts.
    """
    starts = [(match[1], int(match[2] or 1)) for match in map(_NAME.fullmatch, existing) if match]
    newest, count = max(starts, default=('', 0))
    return stamp if stamp > newest else f'{newest}_{count + 1:03d}'
