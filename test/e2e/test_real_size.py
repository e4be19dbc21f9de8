"""One iteration of the true recipe: Swin-B, crops of 512 x 1024 out of 1024 x 2048, on the CPU, batch 1."""

import json
import math
import os
import subprocess
import sys

import pytest
from mmengine.config import Config

from recipe.core import paths
from recipe.data import demo, prepare
from recipe.engine.equip import equip

ROOT = paths.ROOT
CONFIG = ROOT / 'configs' / 'mask2former_swin-b_cityscapes.py'


@pytest.mark.release
@pytest.mark.skipif(not (ROOT / 'mmsegmentation').is_dir(), reason='no checkouts; run bash tools/setup.sh')
def test_one_iteration_of_the_recipe(tmp_path):
    data = tmp_path / 'data'
    demo.demo(data, demo.DemoSet(train=1, val=1, width=2048, height=1024, seed=0))
    prepare.prepare(data)
    overrides = {
        'train_dataloader.batch_size': 1,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_dataloader.dataset.data_root': str(data),
        'val_dataloader.dataset.data_root': str(data),
        'model.backbone.init_cfg': None,  # the pre-trained weights may be out of reach
        'train_cfg.max_iters': 1,
        'train_cfg.val_begin': 2,
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.interval': -1,
        'default_hooks.checkpoint.save_last': False,
    }
    cfg = Config.fromfile(CONFIG)
    equip(cfg)
    cfg.merge_from_dict(overrides)
    cfg.dump(tmp_path / 'config.py')
    command = [sys.executable, paths.PACKAGE, 'train', tmp_path / 'config.py', f'--work-dir={tmp_path / "run"}']
    command += ['--device=cpu']
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'ASCEND_RT_VISIBLE_DEVICES': ''}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (scalars,) = tmp_path.glob('run/*/vis_data/scalars.json')
    (line,) = map(json.loads, scalars.read_text().splitlines())
    terms = {key: value for key, value in line.items() if key.startswith('decode.')}
    assert len(terms) == 30  # class, mask and dice loss of the 10 predictions
    assert math.isclose(sum(terms.values()), line['loss'], rel_tol=1e-4)
    assert math.isfinite(line['grad_norm']) and line['grad_norm'] > 0
