"""Data sets of a config in another layout than Cityscapes' are checked before a rank starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipe.core import console, paths
from recipe.core.run_options import Options
from recipe.data import other_sets
from recipe.engine import config as run_config
from recipe.launch import checks, options
from recipe.launch.plan import Plan

ADE20K = paths.ROOT / 'mmsegmentation/configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'


def write_ade20k(root: Path) -> Path:
    """Three pictures to train on and two to validate on, in the layout of ADE20K."""
    random = np.random.default_rng(0)
    for split, count in (('training', 3), ('validation', 2)):
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            labels = np.kron(random.integers(0, 151, (4, 6)), np.ones((16, 16))).astype(np.uint8)
            picture = random.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / f'images/{split}/ADE_{number}.jpg')
            Image.fromarray(labels).save(root / f'annotations/{split}/ADE_{number}.png')
    return root


def examined(data: Path) -> str:
    asked = options.read('full', [f'--config={ADE20K}', f'--data_path={data}', '--device=cpu'])
    plan = Plan(asked, device='cpu')
    list(checks._data_path(plan))
    plan.config = run_config.make(asked, 'cpu', plan.data_root)
    (finding,) = checks._data_set(plan)
    return finding.found


def test_ade20k_is_taken(tmp_path):
    data = write_ade20k(tmp_path / 'ade')
    assert examined(data) == f'{data}: train 3 pairs, val 2 pairs; their content is not checked'


def test_what_is_missing_is_named(tmp_path):
    data = write_ade20k(tmp_path / 'ade')
    (data / 'annotations/validation/ADE_1.png').unlink()
    with pytest.raises(console.UserError, match=r'there is no file .*/annotations/validation/ADE_1\.png \(val split\)'):
        examined(data)
    for picture in (data / 'images/validation').iterdir():
        picture.unlink()
    with pytest.raises(console.UserError, match='holds no pictures of the val split of ADE20KDataset'):
        examined(data)
    with pytest.raises(console.UserError, match='does not hold the train split of ADE20KDataset: FileNotFoundError'):
        examined(tmp_path)
    with pytest.raises(console.UserError, match='no such folder'):
        examined(tmp_path / 'nothing')


def test_the_scenes_of_the_demo_are_in_cityscapes_layout():
    config = run_config.load(ADE20K)
    assert other_sets.are_in(config) and not other_sets.are_in(run_config.load(run_config.RECIPE))
    plan = Plan(Options('full', demo=True, config=str(ADE20K)), device='cpu', config=config)
    with pytest.raises(console.UserError, match="--demo: its scenes are in Cityscapes' layout"):
        list(checks._data_set(plan))
