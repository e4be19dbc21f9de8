"""An evaluation on the emulated NPU predicts what it predicts on the CPU; the weights are random."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.datasets import CityscapesDataset
from PIL import Image

from recipe.core.paths import CONFIGS, ROOT
from recipe.data import demo, prepare
from recipe.engine.config import build_model
from recipe.evaluate import pictures, predict
from recipe.evaluate.inference import Inference
from recipe.predict.trained_model import load_trained_model

# Share of pixels whose class may differ: two scores of a random model may be equal but for rounding.
TIES = 1e-3


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    demo.demo(folder, demo.DemoSet(train=24, val=3, width=128, height=64, seed=0))
    prepare.prepare(folder)
    return folder


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = Config.fromfile(CONFIGS / 'demo.py')
    model = build_model(config)
    model.init_weights()
    with torch.no_grad():  # otherwise all pixels have one class
        model.decode_head.cls_embed.weight.mul_(10)
        model.decode_head.mask_embed[-1].weight.mul_(10)
    path = tmp_path_factory.mktemp('checkpoint') / 'iter_1.pth'
    facts = {'cfg': config.pretty_text, 'dataset_meta': dict(CityscapesDataset.METAINFO)}
    torch.save({'state_dict': model.state_dict(), 'meta': facts}, path)
    return path


def apart(one, other):
    return np.mean(np.asarray(one) != np.asarray(other))


@pytest.mark.parametrize('tta', [False, pytest.param(True, marks=pytest.mark.release)])
def test_scores_and_labels_are_those_of_the_cpu(data, checkpoint, tta):
    scenes = [predict.read(one.path) for one in pictures.find(data, 'val')]
    both = [Inference(load_trained_model(checkpoint, device), tta=tta) for device in ('npu:0', 'cpu')]
    scores, expected = (one.scores(scenes).cpu() for one in both)
    assert float((scores - expected).abs().max()) <= 1e-3 * float(expected.max() - expected.min())
    labels = [one.labels(scenes) for one in both]
    assert labels[0].shape == (3, 64, 128)
    assert apart(*labels) < TIES


@pytest.mark.release
def test_two_npus_evaluate_as_one_cpu_rank(data, checkpoint, tmp_path):
    results = {}
    for device, nproc in (('npu', 2), ('cpu', 1)):
        command = ['bash', str(ROOT / 'test/evaluate_8p.sh'), f'--checkpoint={checkpoint}', f'--data_path={data}']
        command += [f'--device={device}', f'--nproc={nproc}', f'--work_dir={tmp_path / device}', '--official']
        env = {**os.environ, 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        results[device] = json.loads((tmp_path / device / 'result.json').read_text())
    names = sorted(path.name for path in (tmp_path / 'cpu' / 'predictions').iterdir())
    assert len(names) == 3
    for name in names:
        both = [Image.open(tmp_path / device / 'predictions' / name) for device in ('npu', 'cpu')]
        assert apart(*both) < TIES
    assert results['npu']['aacc_percent'] == pytest.approx(results['cpu']['aacc_percent'], abs=100 * TIES)
