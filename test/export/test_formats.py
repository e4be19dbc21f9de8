"""Each format computes what the model computes, where its users run it; an export that does not is not kept."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from random_mask2former import random_model, save
from recipe.bench import model as bench_model
from recipe.core import console
from recipe.export import cli, formats, parity
from recipe.predict.trained_model import load_trained_model

pytestmark = pytest.mark.trains  # imports what a training does, and more

ON_TORCH_ALONE = """
import sys, numpy, torch
program = torch.export.load(sys.argv[1]).module()
scores, labels = program(torch.from_numpy(numpy.load(sys.argv[2]))[None])
numpy.save(sys.argv[3], scores[0].numpy())
assert torch.equal(labels, scores.argmax(1).to(torch.uint8))
assert not [name for name in ('mmseg', 'mmcv', 'mmdet', 'mmengine', 'recipe') if name in sys.modules]
"""


def export(checkpoint: Path, out: Path, *options: str) -> dict:
    """Export with two pictures; the report."""
    kind = {'.onnx': 'onnx', '.pt2': 'pt2', '.safetensors': 'safetensors'}.get(out.suffix, 'huggingface')
    cli.main(['--checkpoint', str(checkpoint), '--out', str(out), f'--format={kind}', '--parity_pictures=2', *options])
    assert not list(out.parent.glob('.partial.*'))
    return json.loads(out.with_name(f'{out.name}.parity.json').read_text())


@pytest.fixture(scope='module')
def trained(checkpoint):
    return load_trained_model(checkpoint, 'cpu', fast=False)


@pytest.fixture(scope='module')
def wanted(trained, picture):
    """Class scores of the picture by the model itself."""
    scores = formats.scores_of(trained, picture)
    assert len(np.unique(scores.argmax(0))) > 2  # otherwise equal labels would say nothing
    return scores


def test_onnx_takes_pictures_of_any_size_and_number(checkpoint, picture, wanted, tmp_path):
    import onnxruntime

    report = export(checkpoint, tmp_path / 'model.onnx')
    assert (report['size'], report['opset'], report['pictures']) == ('free', 17, 2)
    assert report['largest_difference'] <= parity.MOST_DIFFERENCE
    session = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'), providers=['CPUExecutionProvider'])
    scores, labels = session.run(None, {'images': np.stack([picture, picture[:, ::-1], picture])})
    assert labels.dtype == np.uint8
    assert (labels == scores.argmax(1)).all()
    assert np.abs(scores[0] - wanted).max() <= parity.MOST_DIFFERENCE
    assert np.abs(scores[0] - scores[2]).max() <= parity.MOST_DIFFERENCE
    assert (labels[0] != labels[1]).any()


@pytest.mark.release
@pytest.mark.parametrize('size', ['free', '128x256'])
@pytest.mark.parametrize(('before', 'after'), [('outside', 'outside'), ('outside', 'inside'), ('inside', 'outside')])
def test_onnx_without_processing(checkpoint, size, before, after, tmp_path):
    import onnxruntime

    options = (f'--size={size}', f'--preprocess={before}', f'--postprocess={after}', '--opset=18')
    report = export(checkpoint, tmp_path / 'model.onnx', *options)
    assert report['largest_difference'] <= parity.MOST_DIFFERENCE
    session = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'), providers=['CPUExecutionProvider'])
    assert [one.name for one in session.get_outputs()] == ['scores', 'labels'][: 1 + (after == 'inside')]
    assert [one.type for one in session.get_inputs()] == [f'tensor({"uint8" if before == "inside" else "float"})']


def test_pt2_needs_nothing_but_torch(checkpoint, picture, wanted, tmp_path):
    height, width = picture.shape[:2]
    report = export(checkpoint, tmp_path / 'model.pt2', f'--size={height}x{width}')
    assert report['same_labels'] >= parity.LEAST_SAME
    np.save(tmp_path / 'picture.npy', picture)
    files = [str(tmp_path / name) for name in ('model.pt2', 'picture.npy', 'scores.npy')]
    command = [sys.executable, '-I', '-c', ON_TORCH_ALONE, *files]
    done = subprocess.run(command, cwd=str(tmp_path), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / 'scores.npy') - wanted).max() <= parity.MOST_DIFFERENCE


def test_safetensors_hold_the_config(checkpoint, model, tmp_path):
    from safetensors import safe_open

    report = export(checkpoint, tmp_path / 'model.safetensors')
    assert report['largest_difference'] == 0
    saved = torch.load(checkpoint, weights_only=False)
    with safe_open(str(tmp_path / 'model.safetensors'), 'pt') as file:
        assert file.metadata()['config'] == saved['meta']['cfg']
        assert json.loads(file.metadata()['classes'])[:2] == ['road', 'sidewalk']
        assert sorted(file.keys()) == sorted(model.state_dict())


def test_hugging_face_gives_the_same_label_map(checkpoint, picture, wanted, tmp_path, monkeypatch):
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    report = export(checkpoint, tmp_path / 'hf')
    assert report['largest_difference'] <= 1e-4
    monkeypatch.setattr('transformers.dynamic_module_utils.HF_MODULES_CACHE', str(tmp_path / 'modules'))
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(str(tmp_path / 'hf')).eval()
    assert theirs.config.id2label[18] == 'bicycle'
    processor = AutoImageProcessor.from_pretrained(str(tmp_path / 'hf'), trust_remote_code=True)
    with torch.no_grad():
        outputs = theirs(**processor(picture, return_tensors='pt'))
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[picture.shape[:2]])
    assert (labels.numpy() == wanted.argmax(0)).mean() >= parity.LEAST_SAME


@pytest.mark.parametrize('fault', ['weights', 'not a number', 'labels'])
def test_an_export_that_computes_something_else_is_not_kept(checkpoint, fault, tmp_path, monkeypatch):
    read = formats.read_safetensors

    def read_wrong(*args):
        predict = read(*args)

        def wrong(picture):
            scores, labels = predict(picture)
            if fault == 'labels':
                labels = labels.copy()
                labels.flat[:4] += 1  # 4 of 32768 pixels: 0.012 %
            else:
                scores.flat[0] = np.nan if fault == 'not a number' else scores.flat[0] + 2e-3
            return scores, labels

        return wrong

    monkeypatch.setattr(formats, 'read_safetensors', read_wrong)
    with pytest.raises(console.UserError, match='does not compute what the model computes'):
        export(checkpoint, tmp_path / 'model.safetensors')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.release
@pytest.mark.parametrize('kind', ['onnx', 'pt2', 'safetensors', 'huggingface'])
def test_swin_b_at_the_size_of_the_crops(kind, tmp_path_factory, swin_b):
    out = tmp_path_factory.mktemp('big') / {'huggingface': 'hf'}.get(kind, f'model.{kind}')
    size = ('--size=512x1024',) if kind in ('onnx', 'pt2') else ()
    report = export(swin_b, out, *size)
    assert report['largest_difference'] <= max(1e-3, 1e-4 * report['largest_score'])
    assert report['same_labels'] >= parity.LEAST_SAME


@pytest.fixture(scope='module')
def swin_b(tmp_path_factory):
    made = random_model(bench_model.RECIPE, {})
    return save(made, tmp_path_factory.mktemp('swin_b') / 'iter_1.pth', bench_model.RECIPE, {})


@pytest.mark.parametrize(
    ('difference', 'same', 'largest', 'kept'),
    [
        (9e-4, 1.0, 1.0, True),
        (2e-3, 1.0, 1.0, False),
        (2e-3, 1.0, 87.0, True),
        (1e-2, 1.0, 87.0, False),
        (0.0, 0.9998, 1.0, False),
    ],
)
def test_what_is_kept(difference, same, largest, kept):
    """Scores add up all queries: where they are large, float32 rounds more than 1e-3."""
    found = parity.Parity(difference, same, [(2, 2)], largest)
    with contextlib.nullcontext() if kept else pytest.raises(console.UserError, match='does not compute what'):
        parity.require(found)
