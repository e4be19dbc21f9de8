"""Finds the checkpoint from which a training is resumed."""

import os
import os.path as osp
import re
from typing import Callable, List, Optional, Tuple

from recipe.engine.checkpoint import contents
from recipe.engine.checkpoint.errors import CheckpointError
from recipe.engine.checkpoint.load import load_outline
from recipe.engine.checkpoint.own_process import read_in_own_process

# iter_5000.pth, best_mIoU_iter_5000.pth
_CHECKPOINT_NAME = re.compile(r'(best_.+_)?iter_(\d+)\.pth')
_LISTED = 3  # checkpoints that the error names if none can be used


def find_resumable(
    work_dir: str, misfit: Optional[Callable[[dict], Optional[str]]] = None
) -> Tuple[str, List[Tuple[str, str]]]:
    """Find the newest checkpoint in a run's folder from which training can be resumed.

    The files are sorted by the iterations in their names, because copying changes file times. ``iter_N.pth`` comes
    before ``best_*_iter_N.pth`` of the same iteration. Each file is read in its own process.

    Args:
        work_dir (str): Folder of the run.
        misfit (Callable, optional): Called with a checkpoint in that process; returns why it does not fit, None if it
            does. Defaults to None.

    Returns:
        Tuple[str, List[Tuple[str, str]]]: Path of the checkpoint, and (path, reason) of each newer one that was
        skipped.

    Raises:
        CheckpointError: There is none; the reason names the skipped ones.
    """

    def read(path: str) -> None:
        checkpoint = load_outline(path)
        wrong = contents.fault(checkpoint)
        if wrong is None and misfit is not None:
            wrong = misfit(checkpoint)
        if wrong is not None:
            raise CheckpointError(path, wrong)

    try:
        names = os.listdir(work_dir)
    except OSError as e:
        raise CheckpointError(work_dir, f'no checkpoint there ({e.strerror})') from e
    matches = filter(None, map(_CHECKPOINT_NAME.fullmatch, names))
    newest_first = sorted(matches, key=lambda match: (-int(match[2]), match[1] or ''))
    skipped = []
    for match in newest_first:
        path = osp.join(work_dir, match[0])
        try:
            read_in_own_process(path, read)
        except (CheckpointError, OSError) as e:
            skipped.append((path, getattr(e, 'reason', str(e))))
        else:
            return path, skipped
    reason = 'no checkpoint there to resume from'
    if skipped:
        reason += ': ' + '; '.join(f'{osp.basename(path)} {why}' for path, why in skipped[:_LISTED])
    if len(skipped) > _LISTED:
        reason += f'; {len(skipped) - _LISTED} older ones neither'
    raise CheckpointError(work_dir, reason)
