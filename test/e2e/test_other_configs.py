"""Configs of the checkout get the whole engine as they are: killed and resumed equals never killed."""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from mmengine.config import Config

from launch_sandbox import Sandbox, wait_until
from recipe.core.run_options import BACKBONES
from recipe.engine.backbones import config_file
from resume_faults import kill_before_iter
from resume_job import CHECKOUT, assert_same_end, recipe, train, write_cityscapes

CONFIGS = CHECKOUT / 'configs' / 'mask2former'
SWIN_T = 'mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py'
R_50 = 'mask2former_r50_8xb2-90k_cityscapes-512x1024.py'
TINY = {
    SWIN_T: dict(embed_dims=16, depths=[1, 1, 2, 1], num_heads=[2, 2, 2, 2], init_cfg=None),
    R_50: dict(stem_channels=8, base_channels=4, init_cfg=None),
}


@pytest.mark.parametrize('name', [pytest.param(SWIN_T, marks=pytest.mark.release), R_50])
def test_killed_and_resumed_equals_never_killed(tmp_path, name):
    """With two ranks, whose batch norms each have statistics of their own on a CPU."""
    data = write_cityscapes(tmp_path / 'data')
    unbroken, broken = (
        recipe(data, tmp_path / run, config=CONFIGS / name, backbone=TINY[name]) for run in ('unbroken', 'broken')
    )
    outcome = train(unbroken, world=2)
    assert outcome.codes == [0, 0], outcome.output
    assert train(broken, world=2, sabotage=partial(kill_before_iter, 6)).codes == [-9, -9]
    outcome = train(broken, world=2, resume=True)
    assert outcome.codes == [0, 0], outcome.output
    assert 'not bit by bit' not in outcome.output
    assert_same_end(tmp_path / 'broken', tmp_path / 'unbroken')


@pytest.mark.release
@pytest.mark.trains
@pytest.mark.parametrize('name', BACKBONES)
def test_each_backbone_at_its_own_size(tmp_path, name):
    """Two iterations on small pictures, killed before the second one, and resumed."""
    data = write_cityscapes(tmp_path / 'data')
    model = Config.fromfile(config_file(name)).model
    options = {
        'model.decode_head.in_channels': model.decode_head.in_channels,
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.save_best': None,
        'param_scheduler': [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=2, by_epoch=False)],
    }
    unbroken, broken = (
        recipe(data, tmp_path / run, config=config_file(name), backbone={'init_cfg': None}, **options)
        for run in ('unbroken', 'broken')
    )
    assert train(unbroken).codes == [0]
    assert train(broken, sabotage=partial(kill_before_iter, 2)).codes == [-9]
    outcome = train(broken, resume=True)
    assert outcome.codes == [0], outcome.output
    assert 'RESUMED iter_1.pth' in outcome.output
    assert_same_end(tmp_path / 'broken', tmp_path / 'unbroken')
    shutil.rmtree(tmp_path / 'broken')
    shutil.rmtree(tmp_path / 'unbroken')


OVERRIDES = [
    'model.decode_head.num_queries=10',
    'model.decode_head.train_cfg.num_points=64',
    'model.data_preprocessor.size=(64,64)',
    'train_dataloader.dataset.pipeline.0.crop.crop_size=(64,64)',
    'train_dataloader.dataset.pipeline.0.resize.scales=[64,80]',
    'val_dataloader.dataset.pipeline.1.scale=(128,64)',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.max_keep_ckpts=1',  # a rank that is told to end may save once more
]


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory):
    return Sandbox(tmp_path_factory.mktemp('sandbox'))


@pytest.mark.release
@pytest.mark.parametrize('name', [SWIN_T, R_50])
def test_through_the_launcher(sandbox, name):
    """At their real widths, on built-in scenes."""
    data = sandbox.home / 'data'
    if not data.exists():
        sandbox.make_data('data')
    config = sandbox.root / 'mmsegmentation' / 'configs' / 'mask2former' / name
    options = [f'--config={config}', f'--data_path={data}', '--pretrained=none', '--nproc=1', '--num_workers=0']
    options += ['--batch_size=1', '--seed=5', '--max_iters=12', '--val_interval=6']
    unbroken, broken = (sandbox.home / f'{run}_{Path(name).stem}' for run in ('unbroken', 'broken'))
    done = sandbox.run('full', *options, f'--work_dir={unbroken}', '--', *OVERRIDES)
    assert done.returncode == 0, done.stderr
    job = sandbox.start('full', *options, f'--work_dir={broken}', '--', *OVERRIDES)
    wait_until((broken / 'iter_6.pth').exists, job)
    job.send_signal(signal.SIGKILL)
    job.wait()
    done = sandbox.run('full', *options, f'--work_dir={broken}', '--resume=1', '--', *OVERRIDES)
    assert done.returncode == 0, done.stderr
    assert 'Final Train Accuracy' in done.stdout
    assert_same_end(broken, unbroken)
    shutil.rmtree(broken)
    shutil.rmtree(unbroken)
