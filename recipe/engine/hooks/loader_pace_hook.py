"""A warning if the data loader is slower than the device."""

import os.path as osp
from typing import List, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

_STARTING = 5  # iterations


@HOOKS.register_module()
class LoaderPaceHook(Hook):
    """Warns when the device waits for the data loader.

    It reads the times that ``StepTimes`` writes to ``vis_data/steps.csv``.

    Args:
        interval (int): Iterations between checks. Defaults to 100.
        max_share (float): Share of the time since the last check that may be spent waiting for batches, 0 to 1.
            Defaults to 0.15.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 100, max_share: float = 0.15) -> None:
        self.interval = interval
        self.max_share = max_share
        self._read = 0
        self._told: Optional[float] = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Check the times of the iterations since the last check, on rank 0."""
        if runner.rank == 0 and self.every_n_inner_iters(batch_idx, self.interval):
            self._look(runner)

    def _look(self, runner: Runner) -> None:
        starts = self._read == 0
        path = osp.join(runner.log_dir, 'vis_data', 'steps.csv')
        times = [line.split(',') for line in self._new_lines(path) if line[0].isdigit()]
        if starts:
            # The first iterations of a run wait for the loader to start.
            times = times[_STARTING:]
        waited = sum(float(data) for _, data, _ in times)
        total = sum(float(step) for _, _, step in times)
        share = waited / total if total else 0.0
        # Warn once, and again only if the share grows by half.
        if share <= max(self.max_share, 1.5 * (self._told or 0.0)):
            return
        self._told = share
        loader = runner.train_dataloader
        runner.logger.warning(
            f'The data loader sets the pace, not the device: {share:.0%} of '
            f'the time of the last {len(times)} iterations was spent waiting '
            f'for batches. It has num_workers={loader.num_workers}; give it '
            'more, or use decoded pictures (decoded_cache of the loading '
            'transforms).'
        )

    def _new_lines(self, path: str) -> List[str]:
        """Whole lines that were written since the last check."""
        try:
            with open(path, 'rb') as f:
                f.seek(self._read)
                text = f.read()
        except OSError:
            return []
        text = text[: text.rfind(b'\n') + 1]
        self._read += len(text)
        return text.decode().splitlines()
