"""Finds the checkpoint that a training goes on from."""

import os
import os.path as osp
import re
from typing import List, Tuple

from recipe.engine.checkpoint.load import CheckpointError, load_from_local

# iter_5000.pth, best_mIoU_iter_5000.pth
_CHECKPOINT_NAME = re.compile(r'(best_.+_)?iter_(\d+)\.pth')
_NEEDED = ('state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta')


def _check_resumable(path: str) -> None:
    """Raise :class:`CheckpointError` unless training can go on from a file."""
    checkpoint = load_from_local(path, map_location='cpu')
    if not isinstance(checkpoint, dict):
        raise CheckpointError(path, 'holds no checkpoint of a training run')
    missing = [key for key in _NEEDED if key not in checkpoint]
    if missing:
        raise CheckpointError(path, f'holds no {", ".join(missing)}: weights alone cannot be resumed')
    meta = checkpoint['meta']
    if not isinstance(meta, dict) or not isinstance(meta.get('iter'), int):
        raise CheckpointError(path, 'does not say its iteration')


def find_resumable(work_dir: str) -> Tuple[str, List[Tuple[str, str]]]:
    """Find the newest checkpoint of a run that loads whole.

    The order is that of the iterations in the files' names, not of their
    times, which a copy changes. Of the same iteration, ``iter_N.pth`` comes
    before ``best_*_iter_N.pth``.

    Args:
        work_dir (str): Folder of the run.

    Returns:
        Tuple[str, List[Tuple[str, str]]]: Path of the checkpoint, and the
        newer ones that were passed over as (path, reason).

    Raises:
        CheckpointError: There is none; the reason names what was passed over.
    """
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
            _check_resumable(path)
        except (CheckpointError, OSError) as e:
            skipped.append((path, getattr(e, 'reason', str(e))))
        else:
            return path, skipped
    reason = 'no checkpoint there to resume from'
    if skipped:
        reason += ': ' + '; '.join(f'{osp.basename(path)} {why}' for path, why in skipped)
    raise CheckpointError(work_dir, reason)
