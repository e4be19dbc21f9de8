"""The patched upstreams without the package `recipe`, set up and started as the manual steps of docs/patches.md do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import List, Optional

from recipe.core.paths import ROOT
from recipe.data import demo, prepare

CONFIG = 'configs/mask2former/mask2former_swin-b-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024_any-device.py'
CHECKOUTS = ('mmcv', 'mmdetection', 'mmsegmentation')
CROP = (128, 256)  # pixels; everything else of the model is the recipe's
ITERS = 2


def set_up(folder: Path) -> Path:
    """Clone the upstreams at their pins, apply the patch files with plain git and install the result.

    Args:
        folder: Empty.

    Returns:
        A Python that has the packages of this environment, the patched upstreams and no `recipe`.
    """
    run([sys.executable, '-m', 'venv', '--without-pip', str(folder / 'venv')])
    python = folder / 'venv/bin/python'
    # Python reads no .pth file in a folder that a .pth file names: the editable packages of this environment stay out.
    version = f'python{sys.version_info.major}.{sys.version_info.minor}'
    (folder / 'venv/lib' / version / 'site-packages/others.pth').write_text(sysconfig.get_path('purelib'))
    for name in CHECKOUTS:
        run(['git', 'clone', '--quiet', '--no-checkout', str(ROOT / name), str(folder / name)])
        base = run(['git', 'rev-parse', 'refs/recipe/base'], ROOT / name).strip()
        run(['git', 'checkout', '--quiet', base], folder / name)
        run(['git', 'apply', str(ROOT / f'{name}.patch')], folder / name)
        install = [
            'install',
            '--quiet',
            '--no-build-isolation',
            '--no-deps',
            '--config-settings',
            'editable_mode=compat',
        ]
        env = {**os.environ, 'MMCV_WITH_OPS': '0', 'PYTHONNOUSERSITE': '1'}
        run([sys.executable, '-m', 'pip', '--python', str(python), *install, '-e', str(folder / name)], env=env)
    return python


def train(python: Path, folder: Path, device: str) -> List[dict]:
    """Train the patch's config for two iterations, with a small crop and without pretrained weights, and validate.

    Args:
        python: From `set_up`.
        folder: Of the checkouts.
        device: What the training has to run on.

    Returns:
        The lines of the log's scalars.
    """
    data, run_folder = folder / 'data', folder / 'run'
    demo.demo(data, demo.DemoSet(train=4, val=2, width=256, height=128, seed=0))
    prepare.prepare(data)
    assert run([python, '-c', 'import importlib.util; print(importlib.util.find_spec("recipe"))'], folder) == 'None\n'
    options = {
        'model.backbone.init_cfg': None,
        'model.data_preprocessor.size': CROP,
        'train_cfg.max_iters': ITERS,
        'train_cfg.val_interval': ITERS,
        'train_dataloader.dataset.pipeline.2.scales': [128, 160],
        'train_dataloader.dataset.pipeline.3.crop_size': CROP,
        'val_dataloader.dataset.pipeline.1.scale': (256, 128),
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.interval': ITERS,
    }
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options.update({f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False})
        options.update({f'{loader}.dataset.data_root': data})
    said = ['='.join((key, str(value).replace(' ', ''))) for key, value in options.items()]
    command = [
        python,
        'tools/train.py',
        CONFIG,
        f'--work-dir={run_folder}',
        f'--device={device}',
        '--cfg-options',
        *said,
    ]
    run(command, folder / 'mmsegmentation')
    assert (run_folder / f'iter_{ITERS}.pth').is_file()
    (scalars,) = run_folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in scalars.read_text().splitlines()]


def run(command: list, folder: Path = ROOT, env: Optional[dict] = None) -> str:
    """What a command prints to stdout; the caller fails if the command does."""
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout
