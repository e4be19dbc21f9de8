"""Lines and files of the Ascend ModelZoo convention, for tools that grep them."""

from __future__ import annotations

import platform
from typing import List

from recipe.report.result import Result

# Suffixes of the files of each script; Ascend's scripts name those of both with the first.
CASES = {'full': ('miou',), 'performance': ('miou', 'perf')}
HEADER = '------------------ Final result ------------------'


def lines(result: Result) -> List[str]:
    """Lines for stdout; a figure that was not measured is left out."""
    found = [HEADER]
    if result.fps_images_per_s is not None:
        found.append(f'Final Performance images/sec : {_fps(result)}')
    if result.miou_last_percent is not None:
        found.append(f'Final Train Accuracy : {result.miou_last_percent:.2f}')
    if result.e2e_duration_s is not None:
        found.append(f'E2E Training Duration sec : {result.e2e_duration_s:.0f}')
    if result.step_time_mean_s is not None:
        found.append(f'TrainingTime for step: {_step(result)}')
    return found


def case_names(result: Result, network: str, mode: str) -> List[str]:
    """Case names from network, processes and purpose, such as ``mask2former_swin_8p_miou``."""
    return [f'{network}_{result.world_size}p_{suffix}' for suffix in CASES[mode]]


def figures(result: Result, network: str, case: str) -> str:
    """Content of ``<case>.log``.

    By convention BatchSize is per card, DeviceType is the host's architecture, and miou is empty without a validation.
    """
    pairs = [
        ('Network', network),
        ('RankSize', result.world_size),
        ('BatchSize', result.batch_size_per_card),
        ('DeviceType', platform.machine()),
        ('CaseName', case),
        ('ActualFPS', _fps(result)),
        ('TrainingStepTime', _step(result)),
        ('ActualLoss', f'{result.loss_final:.4f}'),
        ('E2ETrainingTime', f'{result.e2e_duration_s:.0f}'),
        ('miou', '' if result.miou_last_percent is None else f'{result.miou_last_percent:.2f}'),
    ]
    return ''.join(f'{key} = {value}\n' for key, value in pairs)


def _fps(result: Result) -> str:
    assert result.fps_images_per_s is not None, 'the callers ask for it only if it was measured'
    # On small machines, 0.05 images/s would keep only one digit.
    digits = 2 if result.fps_images_per_s >= 10 else 3
    return f'{result.fps_images_per_s:.{digits}f}'


def _step(result: Result) -> str:
    """Mean seconds per iteration over the FPS window: global batch / FPS."""
    return f'{result.step_time_mean_s:.3f}'
