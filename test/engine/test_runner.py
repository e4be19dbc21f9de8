"""Each start logs into a folder of its own, and the folders sort by start."""

from pathlib import Path

import pytest
from mmengine.runner import Runner

import metrics_toy
from recipe.core import run_folder
from recipe.engine.runner import RecipeRunner


@pytest.mark.parametrize(
    ('existing', 'name'),
    [
        ([], '20260101_000005'),
        (['20260101_000004', 'iter_2.pth', 'nonfinite'], '20260101_000005'),
        (['20260101_000005'], '20260101_000005_002'),
        (['20260101_000005', '20260101_000005_002', '20260101_000005_010'], '20260101_000005_011'),
        (['20260101_000005_999'], '20260101_000005_1000'),
        (['20260101_000005_999', '20260101_000005_1000'], '20260101_000005_1001'),
        (['20991231_235959', '20260101_000004'], '20991231_235959_002'),  # the clock was set back
        (['20991231_235959.log', '20991231_235959_backup'], '20260101_000005'),
    ],
)
def test_a_start_is_named_behind_all_earlier_ones(existing, name):
    assert run_folder.next_name(existing, '20260101_000005') == name


def start(runner_class, folder, data):
    """One start that trains two iterations; returns its log folder."""
    runner = runner_class.from_cfg(metrics_toy.config(folder, data, max_iters=2, val_interval=0))
    runner.train()
    return runner.log_dir


@pytest.mark.trains
@pytest.mark.parametrize(('runner_class', 'headers'), [(RecipeRunner, [1, 1, 1]), (Runner, [1, 2])])
def test_starts_in_one_second_or_before_it_keep_their_files(tmp_path, monkeypatch, runner_class, headers):
    """mmengine's own runner shows what would happen."""
    data = metrics_toy.make_cityscapes(tmp_path / 'data')
    names = []
    for stamp in ('20260101_000005', '20260101_000005', '20251231_235959'):
        monkeypatch.setattr('time.strftime', lambda form, *_, stamp=stamp: stamp if '_' in form else form)
        names.append(Path(start(runner_class, tmp_path / 'run', data)).name)
    assert (sorted(names) == names) == (runner_class is RecipeRunner)
    times = sorted((tmp_path / 'run').glob('*/vis_data/steps.csv'))
    assert [path.read_text().count('iter,data_s,step_s') for path in times] == headers
