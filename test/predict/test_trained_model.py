"""A trained model is loaded as data, and predicts what mmseg's own model predicts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model
from mmseg.datasets import CityscapesDataset
from mmseg.registry import MODELS

from recipe.core import console
from recipe.predict import trained_model
from recipe.predict.trained_model import find_checkpoint, load_trained_model

SIZES = [(128, 256), (97, 130), (32, 33), (5, 3)]


def picture(size=(128, 256)):
    """Random blocks, so that there is something to see."""
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(blocks, np.ones((32, 32, 1), np.uint8))[: size[0], : size[1]])


def as_batch(*pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@pytest.fixture(scope='module')
def upstream(run):
    return load_trained_model(run, 'cpu', fast=False)


@pytest.fixture
def save(tmp_path, checkpoint):
    """Write a checkpoint with something changed."""

    def write(name='a.pth', config=None, **changes):
        content = {key: value for key, value in {**checkpoint, **changes}.items() if value is not None}
        torch.save(content, tmp_path / name)
        if config is not None:
            (tmp_path / 'config.py').write_text(config, encoding='utf-8')
        return tmp_path / name

    return write


@pytest.mark.parametrize('size', SIZES)
def test_labels_are_those_of_mmseg(run, trained, upstream, checkpoint, size):
    config = Config.fromfile(str(run / 'config.py'))
    model = MODELS.build(config.model)
    model.load_state_dict(checkpoint['state_dict'])
    model.cfg = config
    expected = inference_model(model.eval(), picture(size))
    batch = as_batch(picture(size))
    assert torch.equal(upstream.labels(batch)[0], expected.pred_sem_seg.data[0].to(torch.uint8))
    assert torch.equal(upstream.scores(batch)[0], expected.seg_logits.data)
    torch.testing.assert_close(trained.scores(batch), upstream.scores(batch), rtol=1e-4, atol=1e-4)
    assert (trained.labels(batch) == upstream.labels(batch)).float().mean() > 0.999
    assert len(expected.pred_sem_seg.data.unique()) > 1 or size == (5, 3)


def test_labels_are_the_largest_scores_at_any_size(trained):
    batch = as_batch(picture(), picture()[::-1])
    scores, labels = trained.scores(batch, (60, 100)), trained.labels(batch, (60, 100))
    assert scores.shape == (2, 19, 60, 100) and scores.dtype == torch.float32
    assert labels.dtype == torch.uint8
    assert torch.equal(scores.argmax(1), labels.long())


def test_facts_of_the_model(run, trained):
    assert trained.path == run / 'best_mIoU_iter_4.pth'
    assert trained.classes == CityscapesDataset.METAINFO['classes'] and trained.num_classes == 19
    assert trained.palette.tolist() == CityscapesDataset.METAINFO['palette']
    assert trained.meta['iter'] == 4 and trained.config.model.decode_head.num_classes == 19
    assert not trained.model.training and not any(one.requires_grad for one in trained.model.parameters())
    assert type(trained.model.decode_head).__name__ == 'FastMask2FormerHead'


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['iter_9.pth', 'iter_10.pth'], 'iter_10.pth'),
        (['iter_9.pth', 'best_mIoU_iter_5.pth', 'best_mAcc_iter_9.pth'], 'best_mIoU_iter_5.pth'),
        (['iter_9.pth', 'best_mAcc_iter_5.pth'], 'best_mAcc_iter_5.pth'),
        (['epoch_2.pth', 'epoch_11.pth'], 'epoch_11.pth'),
        (['model-0a1b2c3d.pth'], 'model-0a1b2c3d.pth'),
        (['model.pth', 'iter_9.pth'], 'iter_9.pth'),
    ],
)
def test_the_checkpoint_of_a_folder(tmp_path, capsys, names, expected):
    for name in names:
        (tmp_path / name).write_text('x')
    assert find_checkpoint(tmp_path).name == expected
    if len(names) > 1:
        assert f'{"best" if expected.startswith("best") else "last"} checkpoint, {expected}' in capsys.readouterr().out


def test_the_config_beside_weights_alone(run, save, checkpoint):
    path = save(meta=None, message_hub=None, optimizer=None, config=checkpoint['meta']['cfg'])
    assert load_trained_model(path, 'cpu').classes == CityscapesDataset.METAINFO['classes']


def test_a_given_config_is_taken(run, save):
    path = save(meta={})
    assert load_trained_model(path, 'cpu', config=run / 'config.py').num_classes == 19


def test_pictures_are_resized_as_in_the_validation(save, checkpoint):
    wide = "dict(type='Resize', scale=(64, 32), keep_ratio=True), dict(type='PackSegInputs')"
    text = f'{checkpoint["meta"]["cfg"]}\ntest_dataloader = dict(dataset=dict(pipeline=[{wide}]))\n'
    trained = load_trained_model(save(meta={'cfg': text}), 'cpu')
    assert trained.resized(picture((128, 200))).shape == (32, 50, 3)
    assert trained.resized(picture((1, 200))).shape == (1, 200, 3)  # 64 x 0 would be nothing


def with_text(old, new):
    def change(checkpoint):
        assert old in checkpoint['meta']['cfg']
        return {'meta': {'cfg': checkpoint['meta']['cfg'].replace(old, new)}}

    return change


def without(name):
    return lambda checkpoint: {'state_dict': {k: v for k, v in checkpoint['state_dict'].items() if k != name}}


BIAS = 'decode_head.cls_embed.bias'
FAULTS = {
    'another model': (
        with_text('embed_dims=48', 'embed_dims=96'),
        r'of another model: backbone\.\S+ is .* there',
    ),
    'another number of classes': (
        with_text('num_classes=19', 'num_classes=7'),
        r'cls_embed\.weight is \(20, 128\)',
    ),
    'a tensor is missing': (without(BIAS), f'{BIAS} is not there'),
    'no weights': (lambda _: {'state_dict': {}}, 'holds no weights'),
    'weights of text': (lambda _: {'state_dict': {'a': 'b'}}, 'weights that are no tensors'),
    'no config': (lambda _: {'meta': {}}, 'holds no config of a model'),
    'config of code': (with_text("'EncoderDecoder'", "'os.system'"), "model.type of the config is 'os.system'"),
    'no segmentor': (lambda _: {'meta': {'cfg': "model = dict(type='mmdet.FPN')"}}, 'does not make a model'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_does_not_fit_is_one_line(save, checkpoint, fault):
    change, message = FAULTS[fault]
    with pytest.raises(console.UserError, match=message):
        load_trained_model(save(**change(checkpoint)), 'cpu')


def test_a_file_that_differs_from_the_hash_in_its_name(run, tmp_path):
    path = shutil.copy(run / 'iter_8.pth', tmp_path / 'model-0a1b2c3d.pth')
    with pytest.raises(console.UserError, match='is damaged: its sha256 begins with'):
        load_trained_model(path, 'cpu')


@pytest.mark.parametrize('device', ['tpu', 'cpu:1', 'cuda:x', '', 'cuda:99', 'npu'])
def test_a_device_that_is_not_there(run, device):
    with pytest.raises(console.UserError, match='device'):
        load_trained_model(run, device)


def test_unknown_classes_have_numbers(capsys):
    classes, palette = trained_model._classes({'dataset_meta': {'classes': ['a']}}, Config({}), 3)
    assert classes == ('class 0', 'class 1', 'class 2') and palette.shape == (3, 3)
    assert 'neither checkpoint nor config names 3 classes' in capsys.readouterr().err
