"""``tools/publish.py``: the model alone, its hash in its name, and a card that says what it is."""

from __future__ import annotations

import hashlib
import json
import os
import re

import numpy as np
import pytest
import torch

from recipe import load
from recipe.core import console, paths
from recipe.predict import publish
from recipe.predict.segmenter import Segmenter

DEMO = paths.ROOT / 'results' / '2026-11-28_cpu_demo' / 'result.json'


def result(**changes):
    """The figures of the demo, with a validation of the checkpoint's iteration."""
    content = json.loads(DEMO.read_text(encoding='utf-8'))
    content['validations'][-1]['iter'] = 4
    return {key: value for key, value in {**content, **changes}.items() if value is not None}


@pytest.fixture
def finished(tmp_path, run):
    """A run folder with a result."""
    folder = tmp_path / 'run'
    folder.mkdir()
    for path in run.iterdir():
        os.link(path, folder / path.name)
    (folder / 'result.json').write_text(json.dumps(result()), encoding='utf-8')
    return folder


def test_the_model_and_its_card(finished, trained, street, capsys):
    publish.main([str(finished), '--licence', 'CC BY-NC 4.0'])
    model, card = sorted((finished / 'published').iterdir(), key=lambda path: path.suffix, reverse=True)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert model.name == f'mask2former_swin_cityscapes_iter4-{digest[:8]}.pth' and card.name == f'{model.stem}.md'
    content = torch.load(model, weights_only=True)
    assert content.keys() == {'meta', 'state_dict'}
    weights = trained.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in content['state_dict'].items())
    assert content['state_dict'].keys() == weights.keys()
    segment = load(finished / 'published', device='cpu')
    assert segment.classes == trained.classes and segment.path == model
    assert np.array_equal(segment(street), Segmenter(trained)(street))
    text = card.read_text(encoding='utf-8')
    for part in (
        f'sha256: `{digest}`',
        '| miou_percent | 45.97 | Mean IoU in percent, over the classes that occur. Validation of iteration 4. |',
        '| fps_images_per_s (whole training) | 5.07826 | Images per second over all cards: global_batch',
        '| bicycle | 28.0 |',
        '| seed | 0 |',
        '| torch | 2.13.0+cpu |',
        '| mmcv | b62a7b10be6e37c37d42afa12e416072433940cd, patched: ',
        '- These weights: CC BY-NC 4.0',
        'Cityscapes is free for non-commercial use only',
        'model = dict(',
    ):
        assert part in text, part
    assert str(model) in capsys.readouterr().out


def test_it_is_the_same_each_time_and_not_overwritten(finished, tmp_path):
    publish.main([str(finished), '--out', str(tmp_path / 'a'), '--name=mine'])
    written = {path.name for path in (tmp_path / 'a').iterdir()}
    publish.main([str(finished / 'best_mIoU_iter_4.pth'), '--out', str(tmp_path / 'a'), '--name=mine', '--force'])
    assert written == {path.name for path in (tmp_path / 'a').iterdir()}
    assert sorted(re.sub('[0-9a-f]{8}', 'HASH', name) for name in written) == ['mine-HASH.md', 'mine-HASH.pth']
    with pytest.raises(console.UserError, match='is there already; give another --out, or --force'):
        publish.main([str(finished), '--out', str(tmp_path / 'a'), '--name=mine'])


FAULTS = {
    'no result': (None, r'there is no .*result\.json.*; make it: python tools/metrics\.py'),
    'no JSON': ('{', r'result\.json cannot be read'),
    'nested too deeply': ('[' * 100_000, r'result\.json cannot be read: nested'),
    'no object': ('[]', r'result\.json cannot be read: holds a list'),
    'no validations': (json.dumps(result(validations=None)), r'result\.json has no validations'),
    'no versions': (json.dumps(result(versions=None)), 'has no versions'),
    'of another iteration': (
        json.dumps(result(validations=[])),
        'no validation of iteration 4, which the',
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_missing_figure_is_an_error(finished, fault):
    text, message = FAULTS[fault]
    (finished / 'result.json').unlink()
    if text is not None:
        (finished / 'result.json').write_text(text)
    with pytest.raises(console.UserError, match=message):
        publish.main([str(finished)])
    assert not (finished / 'published').exists()


def test_a_disk_that_is_full(finished, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(OSError, match='No space left'):
        publish.main([str(finished)])
    assert list((finished / 'published').iterdir()) == []
