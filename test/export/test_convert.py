"""Models of facebookresearch and Hugging Face become checkpoints of ours that compute the same, and back."""

from __future__ import annotations

import pickle
import types

import pytest
import torch

from random_mask2former import random_model
from recipe.bench import model as bench_model
from recipe.export import cli, huggingface
from recipe.predict.trained_model import load_trained_model

SWIN_T = 'mmsegmentation/configs/mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py'


def test_a_pickle_of_facebookresearch(facebook, model, tmp_path, capsys):
    cli.main(['--from=facebook', '--checkpoint', str(facebook), '--out', str(tmp_path / 'model.pth')])
    learned = len(list(model.parameters()))
    assert f'{learned} tensors taken, 5 computed from the settings, none left over' in capsys.readouterr().out
    converted = load_trained_model(tmp_path / 'model.pth', 'cpu', fast=False)
    ours = model.state_dict()
    assert converted.model.state_dict().keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in converted.model.state_dict().items())
    assert converted.classes[0] == 'road'


def logits(head_outputs):
    return [layers[-1] for layers in head_outputs]


@pytest.mark.trains
@pytest.mark.parametrize(
    ('config', 'size'),
    [
        pytest.param(SWIN_T, (128, 160), id='swin-t'),
        pytest.param(bench_model.RECIPE, (512, 1024), id='swin-b', marks=pytest.mark.release),
    ],
)
def test_hugging_face_both_ways(config, size, tmp_path):
    """Logits of our model, of transformers' with its weights, and of ours with the weights of that one."""
    from transformers import Mask2FormerForUniversalSegmentation

    ours = random_model(config, {})
    classes = tuple(f'class {number}' for number in range(19))
    (tmp_path / 'ours').mkdir()
    huggingface.write(types.SimpleNamespace(model=ours, classes=classes), tmp_path / 'ours', None)
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(str(tmp_path / 'ours')).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        given = theirs(pixel_values=images)
        mine = logits(ours.decode_head(ours.backbone(images), None))
    assert torch.allclose(given.class_queries_logits, mine[0], rtol=0, atol=1e-4)
    assert torch.allclose(given.masks_queries_logits, mine[1], rtol=0, atol=1e-4)

    theirs.save_pretrained(str(tmp_path / 'theirs'))
    cli.main(['--from=huggingface', '--checkpoint', str(tmp_path / 'theirs'), '--out', str(tmp_path / 'back.pth')])
    back = load_trained_model(tmp_path / 'back.pth', 'cpu', fast=False)
    assert back.classes == classes
    with torch.no_grad():
        again = logits(back.model.decode_head(back.model.backbone(images), None))
    assert torch.equal(again[0], mine[0])
    assert torch.equal(again[1], mine[1])


def test_a_pickle_runs_nothing(tmp_path):
    """Both the pickle that is one, and one inside of an array's type."""
    import evil_checkpoints

    trace = tmp_path / 'trace'
    for content in (evil_checkpoints.touching(trace), {'model': {'a': evil_checkpoints.touching(trace)}}):
        (tmp_path / 'evil.pkl').write_bytes(pickle.dumps(content))
        with pytest.raises(Exception, match=r'refused, it asks for builtins\.exec'):
            cli.main(['--from=facebook', '--checkpoint', str(tmp_path / 'evil.pkl'), '--out', str(tmp_path / 'a.pth')])
    assert not trace.exists()
    assert not (tmp_path / 'a.pth').exists()
